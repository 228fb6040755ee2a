//! Placing streams as a style sheet says: CSS's block layout, with floats and absolute positions, in a frame of fixed size.
//!
//! Where Vonage's documents leave it open: what is `inline` or `inline-block` stands beside its neighbours like a float; where
//! nothing says how high something is, or how wide something is that does not fill its line, the picture's own shape
//! does.

use taffy::prelude::TaffyAuto;
use taffy::{AvailableSpace, Dimension, Display, LengthPercentageAuto, NodeId, Overflow, Position, Style, TaffyTree};

use super::geometry::{Rect, Size};
use super::layout::{Cell, Crop, Fit, LayoutStream};
use crate::model::stylesheet::{Edge, Length, Property, Sibling, Stylesheet};

/// A stream's computed style.
struct Resolved {
    style: Style,
    z: Option<i32>,
    fit: Fit,
}

/// Places streams, which come in the order of their priority.
#[must_use]
pub fn place(sheet: &Stylesheet, frame: Size, streams: &[LayoutStream]) -> Vec<Cell> {
    let siblings: Vec<Sibling<'_>> = streams.iter().map(|s| Sibling { classes: &s.classes }).collect();
    let resolved: Vec<Resolved> =
        streams.iter().enumerate().map(|(n, shown)| resolve(&sheet.of(&siblings, n), shown)).collect();
    let Some((areas, crops)) = areas(frame, &resolved) else { return Vec::new() };
    let mut order: Vec<usize> = (0..streams.len()).collect();
    // What is positioned lies over what is not, unless it asks to lie below.
    let layer = |n: usize| match resolved[n].style.position {
        Position::Static => (0, false),
        _ => (resolved[n].z.unwrap_or(0), true),
    };
    order.sort_by_key(|n| layer(*n));
    let shown: Vec<usize> = order.into_iter().filter(|n| areas[*n].width > 0 && areas[*n].height > 0).collect();
    let overlap = shown.iter().any(|a| shown.iter().any(|b| a != b && areas[*a].overlaps(areas[*b])));
    let cell = |(depth, n): (i32, &usize)| Cell {
        stream: *n,
        area: areas[*n],
        crop: crops[*n],
        fit: resolved[*n].fit,
        z: if overlap { depth } else { 0 },
    };
    let mut cells: Vec<Cell> = (0..).zip(&shown).map(cell).collect();
    cells.sort_by_key(|cell| cell.stream);
    cells
}

fn resolve(properties: &[Property], shown: &LayoutStream) -> Resolved {
    let mut style = Style { display: Display::Block, position: Position::Static, ..Style::default() };
    let (mut inline, mut z, mut fit) = (false, None, Fit::Contain);
    for property in properties {
        match *property {
            Property::Width(length) => style.size.width = dimension(length),
            Property::Height(length) => style.size.height = dimension(length),
            Property::MinWidth(length) => style.min_size.width = automatic(length),
            Property::MinHeight(length) => style.min_size.height = automatic(length),
            Property::MaxWidth(length) => style.max_size.width = automatic(length),
            Property::MaxHeight(length) => style.max_size.height = automatic(length),
            Property::Inset(edge, length) => *at(&mut style.inset, edge) = automatic(length),
            Property::Margin(edge, length) => *at(&mut style.margin, edge) = automatic(length),
            Property::ZIndex(index) => z = index,
            Property::Absolute(true) => style.position = Position::Absolute,
            Property::Absolute(false) => style.position = Position::Relative,
            Property::Inline(beside) => inline = beside,
            Property::Float(edge) => {
                style.float = match edge {
                    Some(Edge::Right) => taffy::Float::Right,
                    Some(_) => taffy::Float::Left,
                    None => taffy::Float::None,
                };
            }
            Property::Clear(left, right) => {
                style.clear = match (left, right) {
                    (true, true) => taffy::Clear::Both,
                    (true, false) => taffy::Clear::Left,
                    (false, true) => taffy::Clear::Right,
                    (false, false) => taffy::Clear::None,
                };
            }
            Property::Cover(cover) => fit = if cover { Fit::Cover } else { Fit::Contain },
        }
    }
    let (width, height) = shown.size.map_or((16, 9), |(width, height)| (width.max(1), height.max(1)));
    #[allow(clippy::cast_precision_loss)]
    let (width, height) = (width as f32, height as f32);
    if inline && style.float == taffy::Float::None && style.position != Position::Absolute {
        style.float = taffy::Float::Left;
    }
    let (no_width, no_height) = (style.size.width == Dimension::AUTO, style.size.height == Dimension::AUTO);
    // Nothing says how large it is but itself.
    let absolute = style.position == Position::Absolute;
    let both =
        |a: LengthPercentageAuto, b| absolute && a != LengthPercentageAuto::AUTO && b != LengthPercentageAuto::AUTO;
    let (wide, high) = (both(style.inset.left, style.inset.right), both(style.inset.top, style.inset.bottom));
    let shrinks = style.float != taffy::Float::None || (absolute && !wide);
    style.item_is_replaced = shrinks;
    if (no_height && !high) || (no_width && shrinks) {
        style.aspect_ratio = Some(width / height);
    }
    if no_width && no_height && shrinks && !high {
        style.size.width = Dimension::length(width);
    }
    Resolved { style, z, fit }
}

fn at(edges: &mut taffy::Rect<LengthPercentageAuto>, edge: Edge) -> &mut LengthPercentageAuto {
    match edge {
        Edge::Left => &mut edges.left,
        Edge::Right => &mut edges.right,
        Edge::Top => &mut edges.top,
        Edge::Bottom => &mut edges.bottom,
    }
}

fn dimension(length: Length) -> Dimension {
    match length {
        Length::Auto => Dimension::AUTO,
        Length::Pixels(pixels) => Dimension::length(pixels.max(0.0)),
        Length::Share(share) => Dimension::percent(share.max(0.0)),
    }
}

fn automatic(length: Length) -> LengthPercentageAuto {
    match length {
        Length::Auto => LengthPercentageAuto::AUTO,
        Length::Pixels(pixels) => LengthPercentageAuto::length(pixels),
        Length::Share(share) => LengthPercentageAuto::percent(share),
    }
}

/// Each stream's part of the frame, empty if the stream lies outside, and its crop.
fn areas(frame: Size, streams: &[Resolved]) -> Option<(Vec<Rect>, Vec<Crop>)> {
    let mut tree: TaffyTree<()> = TaffyTree::new();
    tree.disable_rounding();
    let nodes: Vec<NodeId> = streams.iter().map(|s| tree.new_leaf(s.style.clone()).ok()).collect::<Option<_>>()?;
    #[allow(clippy::cast_precision_loss)]
    let size = taffy::Size { width: frame.width as f32, height: frame.height as f32 };
    let archive = Style {
        display: Display::FlowRoot,
        position: Position::Relative,
        overflow: taffy::Point { x: Overflow::Hidden, y: Overflow::Hidden },
        size: size.map(Dimension::length),
        ..Style::default()
    };
    let root = tree.new_with_children(archive, &nodes).ok()?;
    tree.compute_layout(root, size.map(AvailableSpace::Definite)).ok()?;
    let area = |node: &NodeId| {
        let layout = tree.layout(*node).ok()?;
        let (x, y) = (layout.location.x, layout.location.y);
        let (left, right) = (edge(x, frame.width), edge(x + layout.size.width, frame.width));
        let (top, bottom) = (edge(y, frame.height), edge(y + layout.size.height, frame.height));
        let area = Rect { x: left, y: top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) };
        let (end_x, end_y) = (x + layout.size.width, y + layout.size.height);
        #[allow(clippy::cast_precision_loss)]
        let (right, bottom) = (end_x - frame.width as f32, end_y - frame.height as f32);
        Some((area, Crop { left: outside(-x), top: outside(-y), right: outside(right), bottom: outside(bottom) }))
    };
    nodes.iter().map(area).collect()
}

/// The nearest even pixel in the frame. Neighbours that share an edge go on sharing it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn edge(at: f32, end: u32) -> u32 {
    // Not a number comes to 0.
    2 * (at / 2.0).round().clamp(0.0, (end / 2) as f32) as u32
}

/// Even pixels beyond an edge. More than this are as good as endless.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn outside(by: f32) -> u32 {
    2 * (by / 2.0).round().clamp(0.0, 500_000.0) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: Size = Size::new(640, 480);

    fn placed(sheet: &str, classes: &[&str]) -> Vec<(usize, [u32; 4])> {
        let sheet = Stylesheet::parse(sheet).expect("a sheet");
        let shown = |class: &&str| LayoutStream {
            size: Some((320, 240)),
            classes: class.split_whitespace().map(str::to_owned).collect(),
            ..LayoutStream::default()
        };
        let streams: Vec<LayoutStream> = classes.iter().map(shown).collect();
        let cells = place(&sheet, FRAME, &streams);
        cells.iter().map(|c| (c.stream, [c.area.x, c.area.y, c.area.width, c.area.height])).collect()
    }

    #[test]
    fn sheets_as_they_are_published_and_used_place_streams_as_a_browser_does() {
        let (left, right) = ([0, 0, 320, 480], [320, 0, 320, 480]);
        for (name, sheet, classes, expected) in [
            ("one", "stream { width: 100%; height: 100% }", vec![""], vec![(0, [0, 0, 640, 480])]),
            ("two", "stream { float: left; width: 50%; height: 100% }", vec!["", ""], vec![(0, left), (1, right)]),
            (
                "three in two rows",
                "stream { float: left; width: 50%; height: 50% }",
                vec!["", "", ""],
                vec![(0, [0, 0, 320, 240]), (1, [320, 0, 320, 240]), (2, [0, 240, 320, 240])],
            ),
            (
                "inline blocks",
                "stream { display: inline-block; width: 50%; height: 50% }",
                vec!["", "", ""],
                vec![(0, [0, 0, 320, 240]), (1, [320, 0, 320, 240]), (2, [0, 240, 320, 240])],
            ),
            (
                "one below the other",
                "stream { height: 120px } stream:last-child { margin-top: 20px }",
                vec!["", ""],
                vec![(0, [0, 0, 640, 120]), (1, [0, 140, 640, 120])],
            ),
            (
                "a picture in a picture",
                "stream { position: absolute } .full { width: 100%; height: 100%; left: 0; top: 0 }
                 stream:nth-child(2) { width: 20%; height: 20%; right: 10%; top: 10% }",
                vec!["full", ""],
                vec![(0, [0, 0, 640, 480]), (1, [448, 48, 128, 96])],
            ),
            (
                "focus",
                ".focus { position: absolute; left: 20%; width: 80%; height: 100%; top: 0 }
                 stream { float: left; clear: left; width: 20%; height: 20% }",
                vec!["", "focus", ""],
                vec![(0, [0, 0, 128, 96]), (1, [128, 0, 512, 480]), (2, [0, 96, 128, 96])],
            ),
            (
                "right",
                "stream { float: right; width: 25%; height: 50% }",
                vec!["", ""],
                vec![(0, [480, 0, 160, 240]), (1, [320, 0, 160, 240])],
            ),
            ("the picture's own shape", "stream { width: 50% }", vec![""], vec![(0, [0, 0, 320, 240])]),
            (
                "its own size",
                "stream { position: absolute; left: 10px; top: 20px }",
                vec![""],
                vec![(0, [10, 20, 320, 240])],
            ),
            (
                "stretched between edges",
                "stream { position: absolute; left: 10px; right: 10px; top: 20px; bottom: 40px }",
                vec![""],
                vec![(0, [10, 20, 620, 420])],
            ),
            (
                "outside",
                "stream { position: absolute; width: 50%; height: 50%; left: 75%; top: 0 } .gone { left: 100% }",
                vec!["", "gone"],
                vec![(0, [480, 0, 160, 240])],
            ),
            (
                "relative",
                "stream { position: relative; width: 320px; height: 240px; left: 40px; top: 10px }",
                vec![""],
                vec![(0, [40, 10, 320, 240])],
            ),
            (
                "limits",
                "stream { width: 90%; height: 90%; max-width: 320px; min-height: 100% }",
                vec![""],
                vec![(0, [0, 0, 320, 480])],
            ),
            (
                "in the middle",
                "stream { width: 320px; height: 240px; margin: 0 auto }",
                vec![""],
                vec![(0, [160, 0, 320, 240])],
            ),
        ] {
            assert_eq!(placed(sheet, &classes), expected, "{name}");
        }
    }

    #[test]
    fn depth_follows_z_index_and_position() {
        let sheet = "stream { width: 100%; height: 100%; position: absolute; left: 0; top: 0 }
                     .back { z-index: -1 } .front { z-index: 5 } .flow { position: relative }";
        let sheet = Stylesheet::parse(sheet).expect("a sheet");
        let shown = |class: &str| LayoutStream {
            size: Some((4, 3)),
            classes: vec![class.to_owned()],
            ..LayoutStream::default()
        };
        let cells = place(&sheet, FRAME, &["front", "", "back"].map(shown));
        let depths: Vec<i32> = cells.iter().map(|c| c.z).collect();
        assert_eq!(depths, [2, 1, 0]);
    }

    proptest! {
        #[test]
        fn whatever_a_sheet_says_pictures_lie_in_the_frame(
            numbers in proptest::collection::vec(-300_i32..300, 8),
            float in prop::sample::select(vec!["left", "right", "none"]),
            position in prop::sample::select(vec!["relative", "absolute"]),
            streams in 0_usize..16,
        ) {
            let [w, h, l, t, m, r, a, b] = numbers[..] else { return Ok(()) };
            let sheet = format!(
                "stream {{ width: {w}%; height: {h}px; left: {l}px; top: {t}%; margin: {m}px }}
                 stream:nth-child({a}n{b:+}) {{ float: {float}; position: {position}; right: {r}% }}"
            );
            let sheet = Stylesheet::parse(&sheet).expect("a sheet");
            let shown = LayoutStream { size: Some((1280, 720)), ..LayoutStream::default() };
            let cells = place(&sheet, FRAME, &vec![shown; streams]);
            prop_assert!(cells.iter().all(|c| c.area.is_in(FRAME) && c.area.width > 0 && c.area.height > 0));
        }
    }
}
