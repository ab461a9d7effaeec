//! The fonts of a picture, and the width of its texts.

use std::sync::{Arc, LazyLock};

use resvg::usvg::fontdb::{Database, Source};
use skrifa::instance::{LocationRef, Size};
use skrifa::{FontRef, MetadataProvider as _};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The name of the font that is a part of this crate: Noto Sans CJK with fewer characters, see `fonts/make.py`.
pub(crate) const FAMILY: &str = "Noto Sans CJK JP";

const FONT: &[u8] = include_bytes!("../fonts/cjk.otf");

/// The font of this crate.
static OWN: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    fonts.load_font_source(Source::Binary(Arc::new(FONT)));
    Arc::new(fonts)
});

/// The font of this crate, and those of the machine. They are loaded for characters that the font of this crate lacks.
static ALL: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::clone(&OWN);
    fonts.load_system_fonts();
    Arc::new(fonts)
});

/// The fonts that a text needs.
pub(crate) fn fonts_for(text: &str) -> Arc<Database> {
    let fonts = if covers(&OWN, text) { &OWN } else { &ALL };
    Arc::clone(fonts)
}

/// Whether some font has each character of a text.
pub(crate) fn is_drawable(text: &str) -> bool {
    covers(&OWN, text) || covers(&ALL, text)
}

/// Whether each character of a text is in one of the fonts. White space needs no font.
fn covers(fonts: &Database, text: &str) -> bool {
    let mut left: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    for face in fonts.faces() {
        if left.is_empty() {
            break;
        }
        fonts.with_face_data(face.id, |data, index| {
            if let Ok(font) = FontRef::from_index(data, index) {
                let characters = font.charmap();
                left.retain(|&c| characters.map(c).is_none());
            }
        });
    }
    left.is_empty()
}

/// The size of a text in plotters divided by the length of its em.
const SIZE_PER_EM: f32 = 1.24;

/// The width of a text in pixels. Characters of other fonts count as squares.
pub(crate) fn width(text: &str, size: u32) -> u32 {
    let Ok(font) = FontRef::new(FONT) else { return text.width() as u32 * size };
    let size = size as f32 / SIZE_PER_EM;
    let metrics = font.glyph_metrics(Size::new(size), LocationRef::default());
    let characters = font.charmap();
    let advance = |c| metrics.advance_width(characters.map(c)?);
    text.chars().map(|c| advance(c).unwrap_or(size)).sum::<f32>().ceil() as u32
}

/// The beginning of a text that has at most `columns` columns of a terminal, on one line.
pub(crate) fn shortened(text: &str, columns: usize) -> String {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect();
    let line = words.join(" ");
    if line.width() <= columns {
        return line;
    }
    let mut used = 1;
    let kept = line.chars().take_while(|c| {
        used += c.width().unwrap_or(0);
        used <= columns
    });
    format!("{}…", kept.collect::<String>().trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_font_covers_chinese_japanese_korean_and_european_letters() {
        for text in [
            "今天天气真好，適合出去散步",
            "散歩に最適です。ー",
            "오늘 날씨가 정말 좋네요",
            "Größe, Ærø, Привет, Việt Nam",
        ] {
            assert!(covers(&OWN, text), "{text}");
        }
        // Thai, and a character that is in no font.
        assert!(!covers(&OWN, "สวัสดี"));
        assert!(!is_drawable("a\u{10fffd}"));
    }

    #[test]
    fn long_texts_are_shortened_to_a_number_of_columns() {
        assert_eq!(shortened("today", 5), "today");
        assert_eq!(shortened("today!", 5), "toda…");
        assert_eq!(shortened(" a \n\tb\u{0}", 5), "a b");
        assert_eq!(shortened("今天天气", 5), "今天…");
        assert_eq!(shortened("今天天", 6), "今天天");
        assert_eq!(shortened("\u{1}", 5), "");
    }
}
