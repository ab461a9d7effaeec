use std::io;
use std::path::PathBuf;

use resvg::usvg;

/// An error about a picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// The number of names is not that of the rows, or not that of the columns of a matrix.
    #[error(
        "expected one name for each row and column, got {names} names for {rows} x {columns} similarities"
    )]
    Names {
        /// The number of names.
        names: usize,
        /// The number of rows.
        rows: usize,
        /// The number of columns.
        columns: usize,
    },
    /// The picture would be too large to be read.
    #[error("expected at most {limit} texts in a picture, got {n}")]
    TooLarge {
        /// The number of texts.
        n: usize,
        /// The maximum number of texts.
        limit: usize,
    },
    /// There is nothing to draw.
    #[error("expected something to draw, got no text")]
    Empty,
    /// A coordinate is NaN or infinite.
    #[error("expected finite coordinates, got ({x}, {y}) for point {index}")]
    NotFinite {
        /// The index of the point.
        index: usize,
        /// Its horizontal position.
        x: f64,
        /// Its vertical position.
        y: f64,
    },
    /// The name of a file has another extension than those of the supported formats.
    #[error("expected a file name that ends with .svg or .png, got {}", .0.display())]
    Extension(PathBuf),
    /// The drawing cannot be turned into paths or pixels.
    #[error("cannot draw: {0}")]
    Draw(String),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl From<usvg::Error> for PlotError {
    fn from(error: usvg::Error) -> Self {
        Self::Draw(error.to_string())
    }
}

impl<E: std::error::Error + Send + Sync> From<plotters::prelude::DrawingAreaErrorKind<E>>
    for PlotError
{
    fn from(error: plotters::prelude::DrawingAreaErrorKind<E>) -> Self {
        Self::Draw(error.to_string())
    }
}
