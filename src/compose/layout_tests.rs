use proptest::prelude::*;

use super::*;

const SD: Size = Size::new(640, 480);
const HD: Size = Size::new(1280, 720);
const PORTRAIT: Size = Size::new(720, 1280);

fn streams(n: usize, width: u32, height: u32) -> Vec<LayoutStream> {
    vec![LayoutStream { size: Some((width, height)), ..LayoutStream::default() }; n]
}

fn layout(kind: LayoutType) -> Layout {
    Layout { kind, ..Layout::default() }
}

/// As `x y w h` a cell, in the order of the streams.
fn placed(layout: &Layout, frame: Size, streams: &[LayoutStream]) -> Vec<(usize, [u32; 4])> {
    let cells = place(layout, frame, streams);
    cells.iter().map(|c| (c.stream, [c.area.x, c.area.y, c.area.width, c.area.height])).collect()
}

#[test]
fn best_fit_takes_the_grid_with_the_largest_pictures_and_centres_short_rows() {
    let grid = |frame, n, wide, high| placed(&layout(LayoutType::BestFit), frame, &streams(n, wide, high));
    assert_eq!(grid(HD, 0, 16, 9), []);
    assert_eq!(grid(HD, 1, 16, 9), [(0, [0, 0, 1280, 720])]);
    // Side by side where that is larger, above each other where this is.
    assert_eq!(grid(HD, 2, 4, 3), [(0, [0, 0, 640, 720]), (1, [640, 0, 640, 720])]);
    assert_eq!(grid(SD, 2, 16, 9), [(0, [0, 0, 640, 240]), (1, [0, 240, 640, 240])]);
    // No black cell beside the third one.
    assert_eq!(grid(HD, 3, 16, 9), [(0, [0, 0, 640, 360]), (1, [640, 0, 640, 360]), (2, [320, 360, 640, 360])]);
    // Three portraits stand in a row.
    assert_eq!(grid(SD, 3, 9, 16), [(0, [0, 0, 212, 480]), (1, [212, 0, 214, 480]), (2, [426, 0, 214, 480])]);
    let five = grid(HD, 5, 16, 9);
    assert_eq!((five[3].1, five[4].1), ([212, 360, 428, 360], [640, 360, 426, 360]));
    let sixteen = grid(HD, 16, 16, 9);
    assert_eq!((sixteen[0].1, sixteen[15].1), ([0, 0, 320, 180], [960, 540, 320, 180]));
    assert_eq!(grid(HD, 20, 16, 9).len(), 16);
}

#[test]
fn pip_has_one_stream_in_the_corner_of_another() {
    let mut all = streams(3, 16, 9);
    all[1].classes = vec!["full".to_owned()];
    let corner = [896, 72, 256, 144];
    assert_eq!(placed(&layout(LayoutType::Pip), HD, &all), [(1, [0, 0, 1280, 720]), (0, corner)]);
    // Nobody has the class: the first one takes its place.
    assert_eq!(placed(&layout(LayoutType::Pip), HD, &streams(2, 16, 9)), [(0, [0, 0, 1280, 720]), (1, corner)]);
    assert_eq!(placed(&layout(LayoutType::Pip), HD, &streams(1, 16, 9)), [(0, [0, 0, 1280, 720])]);
    assert_eq!(placed(&layout(LayoutType::Pip), HD, &[]), []);
}

#[test]
fn a_presentation_has_as_many_beside_the_one_in_focus_as_vonage_shows() {
    let mut all = streams(12, 16, 9);
    all[2].classes = vec!["focus".to_owned()];
    let vertical = placed(&layout(LayoutType::VerticalPresentation), HD, &all);
    assert_eq!(vertical[..2], [(2, [256, 0, 1024, 720]), (0, [0, 0, 256, 144])]);
    let horizontal = placed(&layout(LayoutType::HorizontalPresentation), HD, &all);
    assert_eq!(horizontal[..2], [(2, [0, 0, 1280, 576]), (0, [0, 576, 256, 144])]);
    for (kind, frame, cells) in [
        (LayoutType::VerticalPresentation, HD, 6),
        (LayoutType::HorizontalPresentation, HD, 6),
        (LayoutType::VerticalPresentation, Size::new(1920, 1080), 8),
        (LayoutType::HorizontalPresentation, Size::new(1920, 1080), 8),
        (LayoutType::VerticalPresentation, PORTRAIT, 9),
        (LayoutType::VerticalPresentation, Size::new(1080, 1920), 11),
        (LayoutType::HorizontalPresentation, PORTRAIT, 4),
    ] {
        assert_eq!(place(&layout(kind), frame, &all).len(), cells, "{kind:?} {frame:?}");
    }
}

#[test]
fn a_screen_changes_best_fit_to_the_layout_that_is_asked_for() {
    let mut all = streams(3, 16, 9);
    let with = |kind| Layout { screenshare_type: Some(kind), ..Layout::default() };
    assert_eq!(place(&with(LayoutType::Pip), HD, &all), place(&Layout::default(), HD, &all), "no screen yet");
    all[2].screen = true;
    all[0].classes = vec!["focus".to_owned()];
    assert_eq!(place(&with(LayoutType::VerticalPresentation), HD, &all)[0].stream, 2, "the class is passed over");
    assert_eq!(placed(&with(LayoutType::Pip), HD, &all)[..1], [(2, [0, 0, 1280, 720])]);
    assert_eq!(placed(&with(LayoutType::BestFit), HD, &all), [(2, [0, 0, 1280, 720])]);
    assert_eq!(place(&Layout::default(), HD, &all).len(), 3);
}

fn frames() -> impl Strategy<Value = Size> {
    let sizes = [(640, 480), (480, 640), (1280, 720), (720, 1280), (1920, 1080), (1080, 1920)];
    prop::sample::select(sizes.to_vec()).prop_map(|(width, height)| Size::new(width, height))
}

fn any_streams() -> impl Strategy<Value = Vec<LayoutStream>> {
    let size = prop::option::of((0_u32..4000, 0_u32..4000));
    let class = prop::sample::select(vec!["focus", "full", "other"]);
    let classes = prop::collection::vec(class.prop_map(str::to_owned), 0..2);
    let one = (size, any::<bool>(), classes).prop_map(|(size, screen, classes)| LayoutStream { size, screen, classes });
    prop::collection::vec(one, 0..20)
}

fn layouts() -> impl Strategy<Value = Layout> {
    use LayoutType::{BestFit, HorizontalPresentation, Pip, VerticalPresentation};
    let kind = prop::sample::select(vec![BestFit, Pip, VerticalPresentation, HorizontalPresentation]);
    (kind.clone(), prop::option::of(kind)).prop_map(|(kind, screenshare_type)| Layout {
        kind,
        screenshare_type,
        stylesheet: None,
    })
}

proptest! {
    #[test]
    fn cells_are_in_the_frame_even_and_apart_and_each_stream_has_at_most_one(
        layout in layouts(), frame in frames(), streams in any_streams()
    ) {
        let cells = place(&layout, frame, &streams);
        prop_assert_eq!(cells.is_empty(), streams.is_empty());
        for (n, cell) in cells.iter().enumerate() {
            let Rect { x, y, width, height } = cell.area;
            prop_assert!(cell.area.is_in(frame) && width > 0 && height > 0, "{cell:?}");
            prop_assert!([x, y, width, height].iter().all(|edge| edge % 2 == 0), "{cell:?}");
            let picture = cell.area.contain(streams[cell.stream].size());
            prop_assert!(picture.x >= x && picture.y >= y && picture.x + picture.width <= x + width
                && picture.y + picture.height <= y + height, "{cell:?} {picture:?}");
            for other in &cells[..n] {
                prop_assert_ne!(cell.stream, other.stream);
                prop_assert!(cell.z != other.z || !cell.area.overlaps(other.area), "{cell:?} {other:?}");
            }
        }
    }

    #[test]
    fn best_fit_shows_all_in_the_order_of_reading(frame in frames(), streams in any_streams()) {
        let cells = place(&Layout::default(), frame, &streams);
        prop_assert_eq!(cells.len(), streams.len().min(VIDEO_STREAMS_MAX));
        for two in cells.windows(2) {
            prop_assert_eq!(two[0].stream + 1, two[1].stream);
            let (a, b) = (two[0].area, two[1].area);
            prop_assert!((a.y, a.x) < (b.y, b.x));
        }
    }
}
