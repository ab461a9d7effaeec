use plotters::prelude::{RGBColor, Rectangle, Text, WHITE};
use plotters::style::Color as _;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use qwen3_embed::Similarities;

use crate::error::PlotError;
use crate::font::{is_drawable, shortened, width};
use crate::picture::{Area, INK, Picture, text};

/// The maximum number of texts in a heatmap.
pub const MAX_NAMES: usize = 400;

/// The size of a cell's number, and of the names, in pixels.
const NUMBER_SIZE: u32 = 20;
const NAME_SIZE: u32 = 18;

/// The maximum width of a name in columns of a terminal.
const NAME_COLUMNS: usize = 40;

/// The space between names and cells, and around the picture, in pixels.
const GAP: u32 = 12;

/// Draws the similarities of texts with each other, as a matrix of colored cells.
///
/// `names` has a name for each text. If a name is wider than a cell, names are shown beside the rows only, and both rows
/// and columns have numbers. A name with a character that no font has is left out. Cells of large matrices are too small
/// to show the similarities.
///
/// # Errors
///
/// [`PlotError::Names`] if `names` does not have as many names as `similarities` has rows and columns,
/// [`PlotError::Empty`] if there are none, and [`PlotError::TooLarge`] if there are more than [`MAX_NAMES`].
pub fn heatmap(names: &[String], similarities: &Similarities) -> Result<Picture, PlotError> {
    let n = names.len();
    let (rows, columns) = (similarities.rows(), similarities.cols());
    if n != rows || n != columns {
        return Err(PlotError::Names { names: n, rows, columns });
    }
    let cell = match n {
        0 => return Err(PlotError::Empty),
        1..=8 => 96,
        9..=16 => 72,
        17..=40 => 32,
        41..=MAX_NAMES => 16,
        _ => return Err(PlotError::TooLarge { n, limit: MAX_NAMES }),
    };
    let layout = Layout::new(names, cell);
    Picture::draw(layout.size(), |area| layout.draw(area, similarities))
}

/// The places of a heatmap's cells and names.
struct Layout {
    /// The side of a cell in pixels.
    cell: u32,
    name_size: u32,
    names: Vec<String>,
    /// The width of the longest number, if rows and columns are numbered because the names do not fit above columns.
    number_width: Option<u32>,
    /// The space for the names of the rows, in pixels.
    left: u32,
    /// The space for the names of the columns, in pixels.
    top: u32,
}

impl Layout {
    fn new(names: &[String], cell: u32) -> Self {
        let name_size = NAME_SIZE.min(cell - 3);
        let shown = |name: &String| {
            let name = shortened(name, NAME_COLUMNS);
            if is_drawable(&name) { name } else { String::new() }
        };
        let names: Vec<String> = names.iter().map(shown).collect();
        let widths = || names.iter().map(|name| width(name, name_size));
        let widest = widths().max().unwrap_or(0);
        let fit = widths().all(|width| (1..=cell - 4).contains(&width));
        let number_width = (!fit).then(|| width(&names.len().to_string(), name_size));
        let left = GAP + number_width.map_or(0, |width| width + GAP) + widest + GAP;
        Self { cell, name_size, names, number_width, left, top: GAP + name_size + GAP }
    }

    fn size(&self) -> (u32, u32) {
        let side = self.names.len() as u32 * self.cell + GAP;
        (self.left + side, self.top + side)
    }

    fn draw(&self, area: &Area<'_>, similarities: &Similarities) -> Result<(), PlotError> {
        self.draw_names(area)?;
        let n = self.names.len();
        let numbered = width("-0.000", NUMBER_SIZE) <= self.cell;
        let gap = if self.cell > 16 { 2 } else { 1 };
        for (row, col) in (0..n).flat_map(|row| (0..n).map(move |col| (row, col))) {
            let cosine = similarities.get(row, col);
            let x = (self.left + col as u32 * self.cell) as i32;
            let y = (self.top + row as u32 * self.cell) as i32;
            let side = self.cell as i32 - gap;
            area.draw(&Rectangle::new([(x, y), (x + side, y + side)], shade(cosine).filled()))?;
            if numbered {
                let ink = if cosine > INK_TURNS_AT { WHITE } else { INK };
                let style = text(NUMBER_SIZE, ink).pos(Pos::new(HPos::Center, VPos::Center));
                let center = (x + side / 2, y + side / 2);
                area.draw(&Text::new(format!("{cosine:.3}"), center, style))?;
            }
        }
        Ok(())
    }

    fn draw_names(&self, area: &Area<'_>) -> Result<(), PlotError> {
        let middle = |start: u32, idx: usize| start + idx as u32 * self.cell + self.cell / 2;
        let draw = |name: &str, (x, y): (u32, u32), horizontal, vertical| {
            let style = text(self.name_size, INK).pos(Pos::new(horizontal, vertical));
            area.draw(&Text::new(name.to_owned(), (x as i32, y as i32), style))
        };
        for (idx, name) in self.names.iter().enumerate() {
            let (row, column) =
                (middle(self.top, idx), (middle(self.left, idx), self.top - GAP + 2));
            match self.number_width {
                None => {
                    draw(name, (self.left - GAP, row), HPos::Right, VPos::Center)?;
                    draw(name, column, HPos::Center, VPos::Bottom)?;
                }
                Some(number_width) => {
                    let number = (idx + 1).to_string();
                    draw(&number, (GAP + number_width, row), HPos::Right, VPos::Center)?;
                    draw(name, (GAP + number_width + GAP, row), HPos::Left, VPos::Center)?;
                    draw(&number, column, HPos::Center, VPos::Bottom)?;
                }
            }
        }
        Ok(())
    }
}

/// Cells above this similarity are so dark that their numbers are white.
const INK_TURNS_AT: f32 = 0.55;

/// The color of a similarity: from nearly white for 0 or less to dark blue for 1.
fn shade(cosine: f32) -> RGBColor {
    let share = f64::from(cosine.clamp(0.0, 1.0));
    let between = |light: f64, dark: f64| (light + (dark - light) * share).round() as u8;
    RGBColor(between(241.0, 8.0), between(245.0, 62.0), between(250.0, 122.0))
}
