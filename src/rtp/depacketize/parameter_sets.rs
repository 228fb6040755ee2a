//! H.264's parameter sets (ITU-T H.264 section 7.3.2): kept by their ids, replaced by newer ones, and never too many. A sender may give
//! each keyframe sets with other ids (OpenH264 in Firefox counts 0 to 31 and 0 to 56).

use std::collections::BTreeMap;

use super::PayloadError;
use super::bits::Bits;
use crate::model::media::{Codec, TrackFormat};

/// Ids of sequence parameter sets go to 31, those of picture parameter sets to 255 (section 7.4.2).
const SPS_ID_MAX: u32 = 31;
const PPS_ID_MAX: u32 = 255;
/// Longest parameter set that is kept, in bytes. All scaling lists and all of the usability information take less than 1,500.
const SET_BYTES_MAX: usize = 4096;
/// `profile_idc` of the profiles without B slices: baseline and constrained baseline.
const BASELINE: u32 = 66;
/// The `aspect_ratio_idc` behind which a ratio follows.
const EXTENDED_SAR: u32 = 255;
/// `cpb_cnt_minus1` goes to this.
const BUFFERS_MAX: u32 = 31;
/// Most picture parameter sets in `avcC`, which has eight bits for their number.
const AVCC_PPS_MAX: usize = 255;
/// The beginning of a slice's header that is read, in bytes: three Exp-Golomb codes.
const SLICE_HEADER_BYTES: usize = 16;

/// The newest parameter sets of a stream.
#[derive(Debug, Clone, Default)]
pub struct ParameterSets {
    sps: BTreeMap<u32, Set>,
    pps: BTreeMap<u32, PictureSet>,
    /// The last format, and what it was made of.
    format: Option<(SpsInfo, TrackFormat)>,
}

#[derive(Debug, Clone)]
struct Set {
    nal: Vec<u8>,
    /// Whether it is in the data of a frame.
    is_written: bool,
}

#[derive(Debug, Clone)]
struct PictureSet {
    set: Set,
    /// The id of its sequence parameter set.
    sps: u32,
}

impl Set {
    fn new(nal: &[u8], before: Option<&Self>) -> Self {
        Self { nal: nal.to_vec(), is_written: before.is_some_and(|before| before.is_written && before.nal == nal) }
    }
}

impl ParameterSets {
    pub(super) fn add_sps(&mut self, nal: &[u8]) -> Result<(), PayloadError> {
        check_length(nal)?;
        // Profile, constraints and level come before the id.
        let id = Bits::new(&without_emulation(nal.get(4..).unwrap_or_default())).golomb()?;
        if id > SPS_ID_MAX {
            return Err(PayloadError::Invalid);
        }
        let set = Set::new(nal, self.sps.get(&id));
        self.sps.insert(id, set);
        Ok(())
    }

    pub(super) fn add_pps(&mut self, nal: &[u8]) -> Result<(), PayloadError> {
        check_length(nal)?;
        let plain = without_emulation(nal.get(1..).unwrap_or_default());
        let mut bits = Bits::new(&plain);
        let (id, sps) = (bits.golomb()?, bits.golomb()?);
        if id > PPS_ID_MAX || sps > SPS_ID_MAX {
            return Err(PayloadError::Invalid);
        }
        let set = Set::new(nal, self.pps.get(&id).map(|before| &before.set));
        self.pps.insert(id, PictureSet { set, sps });
        Ok(())
    }

    /// The sets to write before a picture: those that were not written yet, and all that a keyframe with this picture parameter set may need.
    pub(super) fn take_for_picture(&mut self, keyframe: Option<u32>) -> impl Iterator<Item = &[u8]> {
        let active = keyframe.and_then(|pps| self.pps.get(&pps)).map(|pps| pps.sps);
        let sps = self.sps.iter_mut().map(move |(id, set)| (set, active == Some(*id)));
        let pps = self.pps.values_mut().map(move |pps| {
            let needed = active == Some(pps.sps);
            (&mut pps.set, needed)
        });
        sps.chain(pps).filter_map(|(set, needed)| {
            let is_written = std::mem::replace(&mut set.is_written, true);
            (needed || !is_written).then_some(set.nal.as_slice())
        })
    }

    /// The format of a keyframe with this picture parameter set. Sets that differ in nothing that a muxer must know have the format of
    /// the ones before: each keyframe has its own sets.
    pub(super) fn format(&mut self, pps: u32) -> Result<TrackFormat, PayloadError> {
        let active = self.pps.get(&pps).ok_or(PayloadError::Invalid)?.sps;
        let sps = &self.sps.get(&active).ok_or(PayloadError::Invalid)?.nal;
        let picture = parse_sps(sps)?;
        if let Some((known, format)) = &self.format
            && *known == picture
        {
            return Ok(format.clone());
        }
        let format = TrackFormat {
            codec: Codec::H264,
            width: picture.width,
            height: picture.height,
            channels: 0,
            codec_private: self.avcc(active, sps, &picture)?,
        };
        self.format = Some((picture, format.clone()));
        Ok(format)
    }

    /// `avcC` (ISO/IEC 14496-15 section 5.3.3.1) of a sequence parameter set and what refers to it.
    #[allow(clippy::cast_possible_truncation)]
    fn avcc(&self, id: u32, sps: &[u8], picture: &SpsInfo) -> Result<Vec<u8>, PayloadError> {
        let [profile, constraints, level] = picture.profile;
        let pps: Vec<&PictureSet> = self.pps.values().filter(|pps| pps.sps == id).take(AVCC_PPS_MAX).collect();
        let mut avcc = vec![1, profile, constraints, level, 0xff, 0xe1];
        put_parameter_set(&mut avcc, sps)?;
        avcc.push(pps.len() as u8);
        for pps in pps {
            put_parameter_set(&mut avcc, &pps.set.nal)?;
        }
        if matches!(profile, 100 | 110 | 122 | 144 | 244) {
            let [chroma, luma_depth, chroma_depth] = picture.sampling;
            avcc.extend_from_slice(&[0xfc | chroma & 3, 0xf8 | luma_depth & 7, 0xf8 | chroma_depth & 7, 0]);
        }
        Ok(avcc)
    }
}

/// The parameter sets of an `avcC`; those before a wrong length, if one is.
pub(super) fn of_avcc(avcc: &[u8]) -> Vec<&[u8]> {
    let (mut sets, mut rest) = (Vec::new(), avcc.get(5..).unwrap_or_default());
    for mask in [0x1f, 0xff] {
        let Some((count, mut sized)) = rest.split_first() else { break };
        for _ in 0..count & mask {
            let Some((len, after)) = sized.split_first_chunk::<2>() else { return sets };
            let Some((set, behind)) = after.split_at_checked(usize::from(u16::from_be_bytes(*len))) else {
                return sets;
            };
            sets.push(set);
            sized = behind;
        }
        rest = sized;
    }
    sets
}

/// The id of the picture parameter set that a slice refers to (section 7.3.3).
pub(super) fn pps_id_of_slice(nal: &[u8]) -> Result<u32, PayloadError> {
    let head = nal.get(1..nal.len().min(SLICE_HEADER_BYTES)).unwrap_or_default();
    let plain = without_emulation(head);
    let mut bits = Bits::new(&plain);
    let (_first_macroblock, _slice_type) = (bits.golomb()?, bits.golomb()?);
    bits.golomb()
}

fn check_length(nal: &[u8]) -> Result<(), PayloadError> {
    if nal.len() > SET_BYTES_MAX { Err(PayloadError::TooLarge) } else { Ok(()) }
}

/// The bytes without those that prevent an emulation of start codes, which are not part of the syntax (section 7.4.1.1).
fn without_emulation(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        if !(*byte == 3 && at >= 2 && bytes[at - 1] == 0 && bytes[at - 2] == 0) {
            plain.push(*byte);
        }
    }
    plain
}

fn put_parameter_set(avcc: &mut Vec<u8>, nal: &[u8]) -> Result<(), PayloadError> {
    let len = u16::try_from(nal.len()).map_err(|_| PayloadError::TooLarge)?;
    avcc.extend_from_slice(&len.to_be_bytes());
    avcc.extend_from_slice(nal);
    Ok(())
}

/// The fields of a sequence parameter set that a muxer must know.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SpsInfo {
    /// profile_idc, the constraint flags, level_idc.
    profile: [u8; 3],
    width: u32,
    height: u32,
    /// chroma_format_idc, bit_depth_luma_minus8, bit_depth_chroma_minus8.
    sampling: [u8; 3],
    /// Whether pictures may be shown in another order than that in which they are decoded.
    may_reorder: bool,
}

/// Whether pictures with this `avcC` may be shown in another order than that in which they are decoded.
pub(super) fn may_reorder(avcc: &[u8]) -> bool {
    of_avcc(avcc).first().and_then(|sps| parse_sps(sps).ok()).is_some_and(|sps| sps.may_reorder)
}

/// Reads a sequence parameter set (ITU-T H.264 section 7.3.2.1.1).
#[allow(clippy::cast_possible_truncation)]
fn parse_sps(sps: &[u8]) -> Result<SpsInfo, PayloadError> {
    let plain = without_emulation(sps.get(1..).unwrap_or_default());
    let mut bits = Bits::new(&plain);
    let profile = bits.take(8)?;
    let (constraints, level) = (bits.take(8)?, bits.take(8)?);
    bits.golomb()?;
    let mut chroma = 1;
    let mut depths = [0, 0];
    if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
        chroma = bits.golomb()?;
        if chroma == 3 {
            bits.bit()?;
        }
        depths = [bits.golomb()? as u8, bits.golomb()? as u8];
        bits.bit()?;
        if bits.bit()? {
            scaling_lists(&mut bits, if chroma == 3 { 12 } else { 8 })?;
        }
    }
    bits.golomb()?;
    let order_count_type = bits.golomb()?;
    match order_count_type {
        0 => {
            bits.golomb()?;
        }
        1 => {
            bits.bit()?;
            bits.signed_golomb()?;
            bits.signed_golomb()?;
            for _ in 0..bits.golomb()?.min(255) {
                bits.signed_golomb()?;
            }
        }
        _ => {}
    }
    bits.golomb()?;
    bits.bit()?;
    let (w, h) = (bits.golomb()?, bits.golomb()?);
    let frame_only = bits.bit()?;
    if !frame_only {
        bits.bit()?;
    }
    bits.bit()?;
    let fields = if frame_only { 1 } else { 2 };
    let mut crop = [0; 4];
    if bits.bit()? {
        for side in &mut crop {
            *side = bits.golomb()?;
        }
    }
    let (unit_x, unit_y) = match chroma {
        0 | 3 => (1, fields),
        2 => (2, fields),
        _ => (2, 2 * fields),
    };
    let whole = |units: u32, factor: u32| units.checked_add(1).and_then(|u| u.checked_mul(factor));
    let cut = |a: u32, b: u32, unit: u32| a.checked_add(b).and_then(|c| c.checked_mul(unit));
    let width = whole(w, 16).zip(cut(crop[0], crop[1], unit_x)).and_then(|(w, c)| w.checked_sub(c));
    let height = whole(h, 16 * fields).zip(cut(crop[2], crop[3], unit_y)).and_then(|(h, c)| h.checked_sub(c));
    match (width, height) {
        (Some(width @ 1..=16_384), Some(height @ 1..=16_384)) => {
            // Baseline has no B slices (section A.2.1). With type 2 the order of output is that of decoding (section 8.2.1.3).
            let may_reorder = profile != BASELINE && order_count_type != 2 && reordered_pictures(&mut bits) != Some(0);
            let profile = [profile as u8, constraints as u8, level as u8];
            let sampling = [chroma as u8, depths[0], depths[1]];
            Ok(SpsInfo { profile, width, height, sampling, may_reorder })
        }
        _ => Err(PayloadError::Invalid),
    }
}

/// How many pictures may come before one that is shown earlier: `max_num_reorder_frames` of the usability information (section E.1.1), if it is
/// there and can be read.
fn reordered_pictures(bits: &mut Bits<'_>) -> Option<u32> {
    if !bits.bit().ok()? {
        return None;
    }
    usability_information(bits).ok().flatten()
}

fn usability_information(bits: &mut Bits<'_>) -> Result<Option<u32>, PayloadError> {
    if bits.bit()? && bits.take(8)? == EXTENDED_SAR {
        bits.take(32)?;
    }
    if bits.bit()? {
        bits.bit()?;
    }
    if bits.bit()? {
        bits.take(4)?;
        if bits.bit()? {
            bits.take(24)?;
        }
    }
    if bits.bit()? {
        bits.golomb()?;
        bits.golomb()?;
    }
    if bits.bit()? {
        bits.take(32)?;
        bits.take(32)?;
        bits.bit()?;
    }
    let (nal, vcl) = (buffer_model(bits)?, buffer_model(bits)?);
    if nal || vcl {
        bits.bit()?;
    }
    bits.bit()?;
    if !bits.bit()? {
        return Ok(None);
    }
    bits.bit()?;
    for _ in 0..4 {
        bits.golomb()?;
    }
    bits.golomb().map(Some)
}

/// Passes over the parameters of a hypothetical reference decoder (section E.1.2), if they are there.
fn buffer_model(bits: &mut Bits<'_>) -> Result<bool, PayloadError> {
    if !bits.bit()? {
        return Ok(false);
    }
    let buffers = bits.golomb()?;
    bits.take(8)?;
    for _ in 0..=buffers.min(BUFFERS_MAX) {
        bits.golomb()?;
        bits.golomb()?;
        bits.bit()?;
    }
    bits.take(20)?;
    Ok(true)
}

fn scaling_lists(bits: &mut Bits<'_>, count: usize) -> Result<(), PayloadError> {
    for list in 0..count {
        if !bits.bit()? {
            continue;
        }
        let (mut last, mut next) = (8_i64, 8_i64);
        for _ in 0..if list < 6 { 16 } else { 64 } {
            if next != 0 {
                next = (last + bits.signed_golomb()? + 256) % 256;
            }
            if next != 0 {
                last = next;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golomb(value: u32) -> String {
        let code = format!("{:b}", value + 1);
        "0".repeat(code.len() - 1) + &code
    }

    fn bytes(head: &[u8], bits: &str) -> Vec<u8> {
        let padded = format!("{bits}{}", "0".repeat(bits.len().next_multiple_of(8) - bits.len()));
        let octets = (0..padded.len()).step_by(8).map(|at| u8::from_str_radix(&padded[at..at + 8], 2).expect("bits"));
        head.iter().copied().chain(octets).collect()
    }

    fn sps(id: u32) -> Vec<u8> {
        // log2_max_frame_num 4, picture order count type 2, one reference, 20 x 15 macroblocks, frames only, no cropping.
        let rest = ["1", "011", "010", "0"].concat() + &golomb(19) + &golomb(14) + "1" + "1" + "0" + "0" + "1";
        bytes(&[0x67, 0x42, 0xc0, 0x0d], &(golomb(id) + &rest))
    }

    fn pps(id: u32, sps: u32) -> Vec<u8> {
        bytes(&[0x68], &(golomb(id) + &golomb(sps) + "001111000101101"))
    }

    #[test]
    fn ids_that_change_at_each_keyframe_are_one_format_and_every_keyframe_has_its_own_sets() {
        let mut sets = ParameterSets::default();
        let mut first = None;
        // As OpenH264 counts.
        for n in 0..300 {
            let (sps_id, pps_id) = (n % 32, n % 57);
            sets.add_sps(&sps(sps_id)).expect("sps");
            sets.add_pps(&pps(pps_id, sps_id)).expect("pps");
            let format = sets.format(pps_id).expect("format");
            assert_eq!((format.width, format.height), (320, 240));
            assert_eq!(*first.get_or_insert_with(|| format.clone()), format, "keyframe {n}");
            let written: Vec<Vec<u8>> = sets.take_for_picture(Some(pps_id)).map(<[u8]>::to_vec).collect();
            assert_eq!(written.first(), Some(&sps(sps_id)), "keyframe {n}");
            assert!(written.contains(&pps(pps_id, sps_id)), "keyframe {n}");
            assert!(written.len() < 6, "{} sets in keyframe {n}", written.len());
        }
        assert_eq!((sets.sps.len(), sets.pps.len()), (32, 57));
    }

    /// A sequence parameter set with this profile and type of picture order count, and what follows the cropping.
    fn sps_with(profile: u8, order_count_type: u32, usability: &str) -> Vec<u8> {
        let high = if profile == 100 { "010".to_owned() + "1" + "1" + "0" + "0" } else { String::new() };
        let order_count = golomb(order_count_type) + if order_count_type == 0 { "1" } else { "" };
        let size = golomb(19) + &golomb(14) + "1" + "1" + "0";
        bytes(
            &[0x67, profile, 0, 0x1f],
            &("1".to_owned() + &high + "1" + &order_count + "010" + "0" + &size + usability),
        )
    }

    #[test]
    fn only_streams_that_may_have_b_frames_are_reordered() {
        let no_reordering = "1".to_owned() + "0000" + "0" + "0" + "0" + "0" + "1" + "1" + "1111" + &golomb(0) + "1";
        let two = "1".to_owned() + "0000" + "0" + "0" + "0" + "0" + "1" + "1" + "1111" + &golomb(2) + &golomb(4) + "1";
        let model = "1".to_owned() + &golomb(0) + "00000000" + "1" + "1" + "0" + &"0".repeat(20);
        let all = "1".to_owned()
            + "1"
            + "11111111"
            + &"0".repeat(32)
            + "1"
            + "0"
            + "1"
            + "1010"
            + "1"
            + &"0".repeat(24)
            + "1"
            + "1"
            + "1"
            + "1"
            + &"1".repeat(64)
            + "0"
            + &model
            + &model
            + "0"
            + "0"
            + "1"
            + "1"
            + "1111";
        for (name, sps, reorders) in [
            ("baseline", sps_with(66, 0, "01"), false),
            ("main, nothing said", sps_with(77, 0, "01"), true),
            ("main, type 2", sps_with(77, 2, "01"), false),
            ("high, no pictures are reordered", sps_with(100, 0, &no_reordering), false),
            ("high, two pictures", sps_with(100, 0, &two), true),
            ("all of the information, no pictures", sps_with(100, 0, &(all.clone() + &golomb(0) + "1")), false),
            ("all of the information, one picture", sps_with(100, 0, &(all + &golomb(1) + "1")), true),
            ("information that is cut", sps_with(100, 0, "1"), true),
        ] {
            let mut sets = ParameterSets::default();
            sets.add_sps(&sps).expect("sps");
            sets.add_pps(&pps(0, 0)).expect("pps");
            let format = sets.format(0).expect(name);
            assert_eq!((format.width, format.height), (320, 240), "{name}");
            assert_eq!(may_reorder(&format.codec_private), reorders, "{name}");
        }
        for avcc in [&[][..], &[1, 2, 3], &[1, 66, 0, 31, 0xff, 0xe1, 0, 200, 1]] {
            assert!(!may_reorder(avcc));
        }
    }

    #[test]
    fn ids_and_lengths_that_are_not_allowed_are_refused() {
        let mut sets = ParameterSets::default();
        assert_eq!(sets.add_sps(&sps(32)), Err(PayloadError::Invalid));
        assert_eq!(sets.add_pps(&pps(256, 0)), Err(PayloadError::Invalid));
        assert_eq!(sets.add_pps(&pps(0, 32)), Err(PayloadError::Invalid));
        assert_eq!(sets.add_sps(&[0x67; SET_BYTES_MAX + 1]), Err(PayloadError::TooLarge));
        assert_eq!(sets.add_pps(&[0x68]), Err(PayloadError::Short));
        assert_eq!(sets.format(0), Err(PayloadError::Invalid));
        // A picture parameter set whose sequence parameter set never came.
        sets.add_pps(&pps(0, 5)).expect("pps");
        assert_eq!(sets.format(0), Err(PayloadError::Invalid));
    }
}
