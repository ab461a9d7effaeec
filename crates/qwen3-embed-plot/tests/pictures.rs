//! Heatmaps and maps of points as SVG and PNG.
#![allow(clippy::unwrap_used)]

use std::fs;

use qwen3_embed::{Embedder, Embeddings, Similarities, Source};
use qwen3_embed_plot::{MAX_NAMES, Picture, PlotError, Point, heatmap, scatter};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn vectors(n: usize) -> Embeddings {
    let embedder = Embedder::builder(Source::demo()).dimensions(32).build().unwrap();
    let texts: Vec<String> = (0..n).map(|number| number.to_string()).collect();
    embedder.embed_documents(&texts).unwrap()
}

fn similarities(n: usize) -> Similarities {
    let vectors = vectors(n);
    vectors.similarity(&vectors).unwrap()
}

/// The number of shapes in a picture. Text is a shape, because it is drawn as paths.
fn shapes(picture: &Picture) -> usize {
    let svg = picture.to_svg();
    assert!(!svg.contains("<text"), "text depends on the fonts of the viewer");
    svg.matches("<path").count()
}

#[test]
fn a_heatmap_shows_each_cell_and_each_name() {
    // Four cells with a number each, two names for rows and two for columns, and the background.
    let named = heatmap(&names(&["中文", "한국어"]), &similarities(2)).unwrap();
    assert_eq!(shapes(&named), 4 + 4 + 4 + 1);
    // With long names, rows and columns also have numbers.
    let long = heatmap(&names(&["今天天气真好,适合出去散步", "ok"]), &similarities(2)).unwrap();
    assert_eq!(shapes(&long), 4 + 4 + 2 + 4 + 1);
    // In a large matrix, cells have no numbers.
    let large = heatmap(&names(&["x"; 20]), &similarities(20)).unwrap();
    assert_eq!(shapes(&large), 20 * 20 + 2 * 20 + 1);
}

#[test]
fn colors_and_numbers_are_those_of_the_similarities() {
    // The two pictures differ only in the cells outside of the diagonal.
    let [same, different] = [["1", "1"], ["1", "雨"]].map(|texts| {
        let embedder = Embedder::builder(Source::demo()).build().unwrap();
        let vectors = embedder.embed_documents(&texts).unwrap();
        heatmap(&names(&["a", "b"]), &vectors.similarity(&vectors).unwrap()).unwrap().to_svg()
    });
    // The darkest color is that of a similarity of 1.
    assert_eq!(same.matches("#083e7a").count(), 4);
    assert_eq!(different.matches("#083e7a").count(), 2);
}

#[test]
fn numbers_stand_for_names_that_cannot_be_drawn() {
    // No font has characters for private use. Control characters are no text.
    let unknown = heatmap(&names(&["\u{10fffd}", "\u{1}\n"]), &similarities(2)).unwrap();
    assert_eq!(shapes(&unknown), 4 + 4 + 4 + 1);
    assert_eq!(unknown.to_svg(), heatmap(&names(&["", ""]), &similarities(2)).unwrap().to_svg());
}

#[test]
fn any_name_can_be_drawn() {
    let odd =
        names(&["<&>\"'", "]]>", "", "e\u{301}\u{200d}", "\u{202e}abc", &"長".repeat(100_000)]);
    assert!(shapes(&heatmap(&odd, &similarities(6)).unwrap()) > 36);
}

#[test]
fn invalid_numbers_of_names_are_errors() {
    let error = |n_names: usize, n: usize| {
        heatmap(&vec![String::new(); n_names], &similarities(n)).unwrap_err()
    };
    assert!(matches!(error(1, 2), PlotError::Names { names: 1, rows: 2, columns: 2 }));
    assert!(matches!(error(0, 0), PlotError::Empty));
    let n = MAX_NAMES + 1;
    assert!(matches!(error(n, n), PlotError::TooLarge { limit: MAX_NAMES, .. }));
    let rectangle = vectors(2).similarity(&vectors(3)).unwrap();
    assert!(matches!(
        heatmap(&names(&["a", "b"]), &rectangle).unwrap_err(),
        PlotError::Names { names: 2, rows: 2, columns: 3 }
    ));
}

#[test]
fn a_map_shows_each_point_and_the_legend() {
    let point = |x, y, series, mark| Point { x, y, series, mark };
    // Points at the same place, and more series and marks than colors and shapes.
    let points: Vec<Point> = (0..20).map(|i| point(0.0, 0.0, i, 4 * i)).collect();
    let picture = scatter(&points, &names(&["나", "b"]), &["中"]).unwrap();
    assert_eq!(picture.to_svg().matches("<path").count(), 20 + 2 * 3 + 1);
    assert!(matches!(scatter(&[], &[], &[]).unwrap_err(), PlotError::Empty));
    let points = [point(0.0, 0.0, 0, 0), point(1.0, f64::NAN, 0, 0)];
    let error = scatter(&points, &[], &[]).unwrap_err();
    assert!(matches!(error, PlotError::NotFinite { index: 1, .. }));
}

#[test]
fn the_extension_of_a_file_chooses_its_format() {
    let folder = tempfile::tempdir().unwrap();
    let picture = heatmap(&names(&["a"]), &similarities(1)).unwrap();
    for (name, start) in
        [("a.svg", &b"<svg"[..]), ("a.png", b"\x89PNG\r\n\x1a\n"), ("A.PNG", b"\x89PNG")]
    {
        let path = folder.path().join(name);
        picture.write(&path).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(start), "{name}");
    }
    for name in ["a.jpg", "png", ""] {
        let error = picture.write(&folder.path().join(name)).unwrap_err();
        assert!(matches!(error, PlotError::Extension(_)), "{name}: {error}");
    }
    let error = picture.write(&folder.path().join("missing/a.svg")).unwrap_err();
    assert!(matches!(error, PlotError::Write { .. }), "{error}");
}
