//! Media as a browser sends it that encrypts end to end: the frames' bytes are noise, but for the first ones, which routers read.

use str0m::format::Codec;

/// A frame's bytes, encrypted. What a router needs to know keyframes stays readable.
pub(super) fn encrypt(codec: Codec, data: &mut [u8], key: u64) {
    match codec {
        Codec::Opus => scramble(data, 1, key),
        // The frame tag, and the start code and size of a keyframe (RFC 6386 section 9.1).
        Codec::Vp8 => scramble(data, if data.first().is_some_and(|tag| tag & 1 == 0) { 10 } else { 3 }, key),
        Codec::H264 => scramble_slices(data, key),
        _ => {}
    }
}

/// Replaces all bytes from `from` on by noise.
fn scramble(data: &mut [u8], from: usize, key: u64) {
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in data.iter_mut().skip(from) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // No byte is zero, so that no start code comes into being.
        *byte = (state >> 32) as u8 | 1;
    }
}

/// Replaces what is behind the first byte of each slice of a frame in Annex B. Parameter sets stay.
fn scramble_slices(data: &mut [u8], key: u64) {
    let starts: Vec<usize> =
        data.windows(3).enumerate().filter(|(_, three)| *three == [0, 0, 1]).map(|(at, _)| at + 3).collect();
    for (n, start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).map_or(data.len(), |next| next - 3);
        if data.get(*start).is_some_and(|header| matches!(header & 0x1f, 1 | 5)) {
            scramble(&mut data[*start..end], 1, key);
        }
    }
}
