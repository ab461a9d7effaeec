use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::{
    DrawingArea, IntoDrawingArea, IntoFont, RGBColor, SVGBackend, TextStyle, WHITE,
};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;

use crate::error::PlotError;
use crate::font::{FAMILY, fonts_for};

/// The factor from the size of a picture to the size of a PNG in pixels.
const PNG_SCALE: f32 = 2.0;

/// The largest side of a PNG in pixels.
const PNG_LIMIT: f32 = 8192.0;

pub(crate) const INK: RGBColor = RGBColor(32, 36, 44);

/// The area in which a picture is drawn, in pixels.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A picture whose text is drawn as paths.
pub struct Picture {
    tree: usvg::Tree,
}

impl Picture {
    /// The picture that `contents` draws on white, with this width and height.
    pub(crate) fn draw(
        size: (u32, u32),
        contents: impl FnOnce(&Area<'_>) -> Result<(), PlotError>,
    ) -> Result<Self, PlotError> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            area.fill(&WHITE)?;
            contents(&area)?;
            area.present()?;
        }
        let options = usvg::Options {
            font_family: FAMILY.to_owned(),
            fontdb: fonts_for(&svg),
            ..usvg::Options::default()
        };
        Ok(Self { tree: usvg::Tree::from_str(&svg, &options)? })
    }

    /// The picture as SVG. It has no text elements, so it needs no fonts.
    pub fn to_svg(&self) -> String {
        self.tree.to_string(&usvg::WriteOptions::default())
    }

    /// The picture as PNG, with two pixels for each unit of the SVG, or fewer if a side would have more than 8192.
    ///
    /// # Errors
    ///
    /// If the pixels cannot be encoded.
    pub fn to_png(&self) -> Result<Vec<u8>, PlotError> {
        let size = self.tree.size();
        let scale = PNG_SCALE.min(PNG_LIMIT / size.width().max(size.height()));
        let side = |length: f32| (length * scale).ceil() as u32;
        let mut pixels = Pixmap::new(side(size.width()), side(size.height()))
            .ok_or_else(|| PlotError::Draw(format!("a picture of {size:?} has no pixels")))?;
        resvg::render(&self.tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
        pixels.encode_png().map_err(|error| PlotError::Draw(error.to_string()))
    }

    /// Writes the picture to a file: as SVG if its name ends with `.svg`, as PNG if it ends with `.png`.
    ///
    /// # Errors
    ///
    /// [`PlotError::Extension`] for another name, [`PlotError::Write`] if the file cannot be written, and as
    /// [`Self::to_png`].
    pub fn write(&self, path: &Path) -> Result<(), PlotError> {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        let contents = match extension.as_ref().and_then(|extension| extension.to_str()) {
            Some("svg") => self.to_svg().into_bytes(),
            Some("png") => self.to_png()?,
            _ => return Err(PlotError::Extension(path.to_owned())),
        };
        fs::write(path, contents)
            .map_err(|source| PlotError::Write { path: path.to_owned(), source })
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picture").field("size", &self.tree.size()).finish_non_exhaustive()
    }
}

/// The style of a text with a size in pixels.
pub(crate) fn text(size: u32, color: RGBColor) -> TextStyle<'static> {
    (FAMILY, size).into_font().color(&color)
}
