//! Pictures: drawn as SVG, and written as SVG or PNG with the text as paths, so that no font is needed to view them.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use qwen3_embed::Similarities;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

/// Noto Sans CJK with the characters of the labels only; see the README of `examples/data`.
const FONT: &[u8] = include_bytes!("../../data/labels.otf");
const FAMILY: &str = "Noto Sans CJK JP";

/// The side of a heatmap's cell, and the space for labels around a picture, in pixels.
const CELL: u32 = 96;
const MARGIN: i32 = 72;

/// The factor from the size of a picture to the size of a PNG in pixels.
const PNG_SCALE: f32 = 2.0;

const INK: RGBColor = RGBColor(32, 36, 44);
const MUTED: RGBColor = RGBColor(110, 118, 130);

/// Colors that people with color blindness can distinguish.
///
/// # Source
///
/// Okabe and Ito, *Color Universal Design* (2008).
const SERIES: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A point of a scatter plot.
#[derive(Debug, Clone)]
pub struct Point {
    /// Horizontal position.
    pub x: f64,
    /// Vertical position.
    pub y: f64,
    /// Index of the point's series, which determines its color.
    pub series: usize,
    /// The shape of its mark: 0 for a disk, 1 for a square, 2 for a triangle, 3 for a cross.
    pub mark: usize,
}

/// Draws a matrix of similarities, with the names of its rows and columns.
///
/// # Errors
///
/// If drawing fails.
pub fn heatmap(names: &[String], similarities: &Similarities) -> Result<String> {
    let n = u32::try_from(names.len())?;
    let side = n * CELL + MARGIN as u32 + 16;
    draw((side, side), |area| {
        let label = |anchor| text(18, INK).pos(anchor);
        for (row, name) in names.iter().enumerate() {
            let middle = MARGIN + row as i32 * CELL as i32 + CELL as i32 / 2;
            let (left, above) =
                (Pos::new(HPos::Right, VPos::Center), Pos::new(HPos::Center, VPos::Bottom));
            area.draw(&Text::new(name.clone(), (MARGIN - 12, middle), label(left)))?;
            area.draw(&Text::new(name.clone(), (middle, MARGIN - 10), label(above)))?;
            for col in 0..names.len() {
                let cosine = similarities.get(row, col);
                let [x, y] = [col, row].map(|idx| MARGIN + idx as i32 * CELL as i32);
                let cell = [(x, y), (x + CELL as i32 - 2, y + CELL as i32 - 2)];
                area.draw(&Rectangle::new(cell, shade(cosine).filled()))?;
                let ink = if cosine > 0.55 { WHITE } else { INK };
                let center = (x + CELL as i32 / 2 - 1, y + CELL as i32 / 2 - 1);
                let style = text(20, ink).pos(Pos::new(HPos::Center, VPos::Center));
                area.draw(&Text::new(format!("{cosine:.3}"), center, style))?;
            }
        }
        Ok(())
    })
}

/// Draws points in the colors of their series, with a legend for series and marks.
///
/// # Errors
///
/// If drawing fails.
pub fn scatter(points: &[Point], series: &[String], marks: &[&str]) -> Result<String> {
    let size = (760, 520);
    draw(size, |area| {
        let plot = area.margin(16, 16, 16, 200);
        let (x, y) = (extent(points, |point| point.x), extent(points, |point| point.y));
        let mut chart = ChartBuilder::on(&plot).build_cartesian_2d(x, y)?;
        chart.configure_mesh().disable_mesh().disable_axes().draw()?;
        let plane = chart.plotting_area();
        for point in points {
            let (at, color) = ((point.x, point.y), SERIES[point.series % SERIES.len()]);
            mark(plane, at, point.mark, color)?;
        }
        let legend = |row: usize| (size.0 as i32 - 180, 40 + 26 * row as i32);
        for (idx, name) in series.iter().enumerate() {
            let (x, y) = legend(idx);
            mark(area, (x, y), 0, SERIES[idx % SERIES.len()])?;
            area.draw(&Text::new(name.clone(), (x + 14, y), legend_text()))?;
        }
        for (idx, name) in marks.iter().enumerate() {
            let (x, y) = legend(series.len() + 1 + idx);
            mark(area, (x, y), idx, MUTED)?;
            area.draw(&Text::new((*name).to_owned(), (x + 14, y), legend_text()))?;
        }
        Ok(())
    })
}

/// Writes a picture: SVG with the text as paths, or PNG, as the extension of `path` says.
///
/// # Errors
///
/// If the extension is another one, or the file cannot be written.
pub fn write_picture(path: &Path, svg: &str) -> Result<()> {
    let mut options = usvg::Options { font_family: FAMILY.to_owned(), ..usvg::Options::default() };
    let fonts: &mut fontdb::Database = options.fontdb_mut();
    fonts.load_font_data(FONT.to_vec());
    // For characters of other texts than those of the examples.
    fonts.load_system_fonts();
    let tree = usvg::Tree::from_str(svg, &options)?;
    let contents = match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => tree.to_string(&usvg::WriteOptions::default()).into_bytes(),
        Some("png") => png(&tree)?,
        _ => bail!("{} has neither the extension .svg nor .png", path.display()),
    };
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

fn png(tree: &usvg::Tree) -> Result<Vec<u8>> {
    let size = tree.size().to_int_size().scale_by(PNG_SCALE).context("the picture is empty")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("the picture is empty")?;
    let transform = Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(tree, transform, &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

/// The SVG that `contents` draws on white.
fn draw(
    size: (u32, u32),
    contents: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<()>,
) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        contents(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// Draws one of four marks.
fn mark<C: CoordTranslate>(
    area: &DrawingArea<SVGBackend<'_>, C>,
    at: C::From,
    mark: usize,
    color: RGBColor,
) -> Result<()>
where
    C::From: Clone,
{
    let style = color.filled();
    match mark % 4 {
        0 => area.draw(&Circle::new(at, 5, style)),
        1 => area.draw(&(EmptyElement::at(at) + Rectangle::new([(-4, -4), (5, 5)], style))),
        2 => area.draw(&TriangleMarker::new(at, 6, style)),
        _ => area.draw(&Cross::new(at, 5, color.stroke_width(2))),
    }?;
    Ok(())
}

/// The range of a coordinate, with some space at both ends.
fn extent(points: &[Point], coordinate: impl Fn(&Point) -> f64) -> Range<f64> {
    let values = points.iter().map(coordinate);
    let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), v| (min.min(v), max.max(v)));
    let space = 0.04 * (max - min).max(f64::MIN_POSITIVE);
    min - space..max + space
}

/// The color of a similarity: from nearly white for 0 or less to dark blue for 1.
fn shade(cosine: f32) -> RGBColor {
    let share = f64::from(cosine.clamp(0.0, 1.0));
    let between = |light: f64, dark: f64| (light + (dark - light) * share).round() as u8;
    RGBColor(between(241.0, 8.0), between(245.0, 62.0), between(250.0, 122.0))
}

fn legend_text() -> TextStyle<'static> {
    text(16, INK).pos(Pos::new(HPos::Left, VPos::Center))
}

fn text(size: u32, color: RGBColor) -> TextStyle<'static> {
    (FAMILY, size).into_font().color(&color)
}
