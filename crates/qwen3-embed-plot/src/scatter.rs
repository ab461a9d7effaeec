use std::ops::Range;

use plotters::coord::CoordTranslate;
use plotters::prelude::{
    ChartBuilder, Circle, Cross, DrawingArea, EmptyElement, RGBColor, Rectangle, SVGBackend, Text,
    TriangleMarker,
};
use plotters::style::Color as _;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::PlotError;
use crate::font::{is_drawable, shortened, width};
use crate::picture::{Area, INK, Picture, text};

/// The size of the area for points, and the space around it, in pixels.
const PLOT: (u32, u32) = (560, 520);
const MARGIN: u32 = 16;

const LEGEND_SIZE: u32 = 16;
const LEGEND_ROW: u32 = 26;

/// The space for a mark before its name.
const NAME_INDENT: u32 = 22;

/// The maximum width of a name in the legend in columns of a terminal.
const NAME_COLUMNS: usize = 32;

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

/// A point of a map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Horizontal position, in any unit.
    pub x: f64,
    /// Vertical position, in any unit.
    pub y: f64,
    /// Index of the point's series, which determines its color. Seven colors are repeated.
    pub series: usize,
    /// Index of the shape of its mark: a disk, a square, a triangle or a cross. Four shapes are repeated.
    pub mark: usize,
}

/// Draws points in the colors of their series, with a legend that has the names of the series and of the marks.
///
/// Positions are scaled to the size of the picture.
///
/// # Errors
///
/// [`PlotError::Empty`] if there are no points, and [`PlotError::NotFinite`] if a coordinate is not finite.
pub fn scatter(points: &[Point], series: &[String], marks: &[&str]) -> Result<Picture, PlotError> {
    if points.is_empty() {
        return Err(PlotError::Empty);
    }
    for (index, &Point { x, y, .. }) in points.iter().enumerate() {
        if !(x.is_finite() && y.is_finite()) {
            return Err(PlotError::NotFinite { index, x, y });
        }
    }
    let series = series.iter().enumerate().map(|(idx, name)| (name.as_str(), 0, color(idx)));
    let marks = marks.iter().enumerate().map(|(idx, &name)| (name, idx, MUTED));
    // An empty row separates series and marks.
    let legend: Vec<_> = series.map(Some).chain([None]).chain(marks.map(Some)).collect();
    let widths = legend.iter().flatten().map(|&(name, ..)| width(&legend_name(name), LEGEND_SIZE));
    let legend_width = NAME_INDENT + widths.max().unwrap_or(0) + MARGIN;
    let height = PLOT.1.max(LEGEND_ROW * legend.len() as u32 + 2 * MARGIN);
    Picture::draw((PLOT.0 + legend_width, height), |area| {
        draw_points(&area.margin(MARGIN, MARGIN, MARGIN, legend_width), points)?;
        for (row, &(name, shape, color)) in
            legend.iter().enumerate().filter_map(|(row, entry)| Some((row, entry.as_ref()?)))
        {
            let (x, y) =
                ((PLOT.0 + 8) as i32, (MARGIN + LEGEND_ROW * row as u32 + LEGEND_ROW / 2) as i32);
            draw_mark(area, (x, y), shape, color)?;
            let style = text(LEGEND_SIZE, INK).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(legend_name(name), (x + NAME_INDENT as i32 - 8, y), style))?;
        }
        Ok(())
    })
}

fn draw_points(area: &Area<'_>, points: &[Point]) -> Result<(), PlotError> {
    let (x, y) = (extent(points, |point| point.x), extent(points, |point| point.y));
    let mut chart = ChartBuilder::on(area).build_cartesian_2d(x, y)?;
    chart.configure_mesh().disable_mesh().disable_axes().draw()?;
    for point in points {
        draw_mark(chart.plotting_area(), (point.x, point.y), point.mark, color(point.series))?;
    }
    Ok(())
}

/// Draws one of four marks.
fn draw_mark<C: CoordTranslate>(
    area: &DrawingArea<SVGBackend<'_>, C>,
    at: C::From,
    mark: usize,
    color: RGBColor,
) -> Result<(), PlotError>
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

/// The color of a series.
fn color(series: usize) -> RGBColor {
    SERIES[series % SERIES.len()]
}

/// A name as the legend shows it.
fn legend_name(name: &str) -> String {
    let name = shortened(name, NAME_COLUMNS);
    if is_drawable(&name) { name } else { "?".to_owned() }
}

/// The range of a coordinate, with some space at both ends.
fn extent(points: &[Point], coordinate: impl Fn(&Point) -> f64) -> Range<f64> {
    let values = points.iter().map(coordinate);
    let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), v| (min.min(v), max.max(v)));
    // Equal coordinates are drawn in the middle.
    let space = if max > min { 0.04 * (max - min) } else { 1.0 };
    min - space..max + space
}
