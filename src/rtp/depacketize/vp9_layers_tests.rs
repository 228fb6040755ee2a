use super::*;

/// A frame to be written: a keyframe where `reference` is `None`.
#[derive(Clone, Copy)]
struct Shape {
    shown: bool,
    resilient: bool,
    /// The reference that an inter frame predicts from.
    reference: Option<u32>,
    /// Whether it has the reference's size, or its own.
    is_sized_by_reference: bool,
    size: Size,
    /// The references that it replaces.
    refresh: u32,
    /// Makes the header one to four bits longer.
    extra_bits: u32,
}

const KEY: Shape = Shape {
    shown: true,
    resilient: false,
    reference: None,
    is_sized_by_reference: false,
    size: (320, 240),
    refresh: 0xff,
    extra_bits: 0,
};
const LOW: Shape = Shape { reference: Some(0), is_sized_by_reference: true, refresh: 1, ..KEY };
const HIGH: Shape = Shape { reference: Some(0), size: (640, 480), refresh: 2, ..KEY };
const HIGH_AGAIN: Shape = Shape { reference: Some(1), is_sized_by_reference: true, ..HIGH };

/// What follows the uncompressed header.
const COMPRESSED: [u8; 9] = [0xab, 0xcd, 0xef, 0x01, 0x02, 0x03, 0x04, 0x99, 0x98];

/// Writes bits, the most significant first.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn put(&mut self, count: u32, value: u32) {
        self.0.extend((0..count).rev().map(|bit| (value >> bit & 1) as u8));
    }

    fn bytes(&self) -> Vec<u8> {
        self.0
            .chunks(8)
            .map(|eight| eight.iter().enumerate().fold(0, |byte, (at, bit)| byte | bit << (7 - at)))
            .collect()
    }
}

impl Shape {
    fn frame(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.put(5, 0b1_0000);
        w.put(1, u32::from(self.reference.is_some()));
        w.put(1, u32::from(self.shown));
        w.put(1, u32::from(self.resilient));
        match self.reference {
            None => {
                w.put(28, 0x0498_3422);
                w.put(32, (self.size.0 - 1) << 16 | (self.size.1 - 1));
                w.put(1, 0);
            }
            Some(reference) => {
                w.put(u32::from(!self.shown), 0);
                w.put(if self.resilient { 0 } else { 2 }, 0);
                w.put(8, self.refresh);
                [reference, 7, 7].into_iter().for_each(|slot| w.put(4, slot << 1));
                if self.is_sized_by_reference {
                    w.put(1, 1);
                } else {
                    w.put(3, 0);
                    w.put(32, (self.size.0 - 1) << 16 | (self.size.1 - 1));
                }
                w.put(3, 0b001);
            }
        }
        w.put(if self.resilient { 0 } else { 2 }, 0b10);
        w.put(2, 0);
        w.put(9, 0x155);
        // Its deltas of the loop filter, each without a value.
        w.put(2, if self.extra_bits > 0 { 0b11 } else { 0b10 });
        if self.extra_bits > 0 {
            w.put(6, 0);
        }
        w.put(8, 99);
        w.put(3, 0);
        w.put(1, 0);
        w.put(u32::from(self.size.0 >= 512), 0);
        w.put(1, 0);
        w.put(16, 7);
        let mut bytes = w.bytes();
        bytes.extend(COMPRESSED);
        bytes
    }
}

fn picture(layers: &[Shape]) -> Bytes {
    let (mut data, mut starts) = (Vec::new(), Vec::new());
    for layer in layers {
        starts.push(data.len());
        data.extend(layer.frame());
    }
    append_superframe_index(&mut data, &starts).expect("superframe");
    data.into()
}

/// Which frames of a picture are shown.
fn shown(picture: &[u8], references: &[Option<Size>; 8]) -> Vec<bool> {
    frames_of(picture)
        .iter()
        .map(|frame| read_header(frame, references).expect("header").expect("frame").is_shown)
        .collect()
}

#[test]
fn only_the_highest_layer_is_shown_and_nothing_else_changes() {
    let mut hider = LayerHider::default();
    let references = [Some((320, 240)), Some((640, 480)), None, None, None, None, None, None];
    for (name, layers) in [
        ("keyframe", [KEY, HIGH]),
        ("inter", [LOW, HIGH_AGAIN]),
        ("inter, whose header ends in another bit", [Shape { extra_bits: 6, ..LOW }, HIGH_AGAIN]),
        ("resilient", [Shape { resilient: true, ..LOW }, HIGH_AGAIN]),
    ] {
        let before = picture(&layers);
        assert_eq!(shown(&before, &references), [true, true], "{name}");
        let after = hider.hide_lower_layers(before);
        assert_eq!(shown(&after, &references), [false, true], "{name}");
        let hidden = Shape { shown: false, ..layers[0] };
        assert_eq!(frames_of(&after), [hidden.frame(), layers[1].frame()], "{name}");
    }
}

#[test]
fn a_picture_of_one_layer_and_one_that_would_be_damaged_stay() {
    for (name, layers) in [
        ("one layer", vec![KEY]),
        ("a hidden frame before it", vec![Shape { shown: false, ..KEY }, HIGH]),
        ("layers of one size, which predict motion from each other", vec![KEY, LOW]),
        ("a reference that never came", vec![LOW, HIGH]),
    ] {
        let before = picture(&layers);
        assert_eq!(LayerHider::default().hide_lower_layers(before.clone()), before, "{name}");
    }
    // A resilient frame predicts no motion.
    let layers = [KEY, Shape { resilient: true, ..LOW }];
    assert_ne!(LayerHider::default().hide_lower_layers(picture(&layers)), picture(&layers));
}

#[test]
fn what_is_cut_or_changed_anywhere_is_no_panic() {
    let whole = [picture(&[KEY, HIGH]), picture(&[LOW, HIGH_AGAIN])];
    for len in 0..whole[1].len() {
        let mut hider = LayerHider::default();
        hider.hide_lower_layers(whole[0].clone());
        hider.hide_lower_layers(whole[1].slice(..len));
    }
    for at in 0..8 * whole[1].len() {
        let mut hider = LayerHider::default();
        hider.hide_lower_layers(whole[0].clone());
        let mut changed = whole[1].to_vec();
        changed[at / 8] ^= 1 << (at % 8);
        hider.hide_lower_layers(changed.into());
    }
}
