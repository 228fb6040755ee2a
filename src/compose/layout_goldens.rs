//! Layouts as pictures that a person can look at: `fixtures/layouts/*.svg`, one a layout, with frames of three shapes and
//! more and more streams. After a change on purpose `UPDATE_GOLDENS=1 cargo test layout` draws them anew.

use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::compose::css_layout;
use crate::model::stylesheet::Stylesheet;

const FRAMES: [Size; 3] = [Size::new(640, 480), Size::new(1280, 720), Size::new(720, 1280)];
const STREAMS: [usize; 8] = [1, 2, 3, 4, 5, 7, 9, 16];
/// What publishers send, in turn.
const PICTURES: [(u32, u32); 4] = [(1280, 720), (640, 480), (1280, 720), (720, 1280)];
/// Pixels of the longer side of a frame in the drawing, and between frames.
const SIDE: u32 = 200;
const BETWEEN: u32 = 20;

/// One in focus, cut to its place, and a column beside it.
const SHEET: &str = "stream { float: left; clear: left; width: 20%; height: 12.5% }
    stream.instructor { position: absolute; left: 20%; width: 80%; height: 100%; object-fit: cover }";

fn streams(n: usize, screen: bool) -> Vec<LayoutStream> {
    let stream = |at: usize| LayoutStream {
        size: Some(PICTURES[at % PICTURES.len()]),
        screen: screen && at == 1,
        // The second has what each layout asks for.
        classes: if at == 1 { ["focus", "full", "instructor"].map(str::to_owned).to_vec() } else { Vec::new() },
    };
    (0..n).map(stream).collect()
}

fn frame(cells: &[Cell], size: Size, streams: &[LayoutStream], text: &mut String) -> std::fmt::Result {
    let (width, height) = (size.width, size.height);
    writeln!(text, "    <rect width=\"{width}\" height=\"{height}\" fill=\"black\"/>")?;
    let mut cells = cells.to_vec();
    cells.sort_by_key(|cell| cell.z);
    for cell in cells {
        let natural = streams[cell.stream].size();
        let part = if cell.fit == Fit::Contain { cell.area.contain(natural) } else { cell.area };
        let (hue, Rect { x, y, width, height }) = (cell.stream * 47 % 360, part);
        writeln!(
            text,
            "    <rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"hsl({hue},60%,60%)\" stroke=\"white\" stroke-width=\"4\"/>"
        )?;
        let (x, y, letters) = (x + width / 2, y + height / 2, width.min(height) / 2);
        writeln!(
            text,
            "    <text x=\"{x}\" y=\"{y}\" font-size=\"{letters}\" text-anchor=\"middle\" dominant-baseline=\"central\">{}</text>",
            cell.stream + 1
        )?;
    }
    Ok(())
}

fn drawn(place: impl Fn(Size, &[LayoutStream]) -> Vec<Cell>, screen: bool) -> String {
    let step = SIDE + BETWEEN;
    let wide = u32::try_from(STREAMS.len()).expect("few") * step + BETWEEN;
    let high = u32::try_from(FRAMES.len()).expect("few") * step + BETWEEN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{wide}\" height=\"{high}\" font-family=\"sans-serif\">\n"
    );
    for (row, size) in (0..).zip(FRAMES) {
        for (column, n) in (0..).zip(STREAMS) {
            let (x, y, all) = (BETWEEN + column * step, BETWEEN + row * step, streams(n, screen));
            let (width, height) = (size.width, size.height);
            let begin = format!(
                "  <svg x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" viewBox=\"0 0 {width} {height}\">\n"
            );
            text.push_str(&begin);
            frame(&place(size, &all), size, &all, &mut text).expect("a text takes all");
            text.push_str("  </svg>\n");
        }
    }
    text + "</svg>\n"
}

#[test]
fn layouts_look_as_they_are_drawn_in_the_fixtures() {
    let of = |kind| move |size: Size, all: &[LayoutStream]| place(&Layout { kind, ..Layout::default() }, size, all);
    let screen = Layout { screenshare_type: Some(LayoutType::HorizontalPresentation), ..Layout::default() };
    let sheet = Stylesheet::parse(SHEET).expect("a sheet");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/layouts");
    for (name, text) in [
        ("bestFit", drawn(of(LayoutType::BestFit), false)),
        ("pip", drawn(of(LayoutType::Pip), false)),
        ("verticalPresentation", drawn(of(LayoutType::VerticalPresentation), false)),
        ("horizontalPresentation", drawn(of(LayoutType::HorizontalPresentation), false)),
        ("screen", drawn(|size, all| place(&screen, size, all), true)),
        ("custom", drawn(|size, all| css_layout::place(&sheet, size, all), false)),
    ] {
        let path = folder.join(format!("{name}.svg"));
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::create_dir_all(&folder).expect("folder");
            std::fs::write(&path, &text).expect("golden");
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(golden == text, "{} is drawn otherwise; if that is right: UPDATE_GOLDENS=1", path.display());
    }
}
