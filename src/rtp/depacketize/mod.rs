//! From RTP payloads to frames, codec by codec. Pure; payloads are untrusted.
//!
//! A payload is first classified ([`Depacketizer::boundaries`]): does a frame begin or end with it? When all packets of a
//! frame are there, they are joined into one [`AssembledFrame`], in the form that the container needs.

mod av1;
mod bits;
pub mod h264;
mod parameter_sets;
mod vp8;
mod vp9;
mod vp9_layers;

pub use vp9_layers::LayerHider;

use crate::model::media::{Codec, TrackFormat};

/// Largest frame that is assembled, in bytes. A 4K keyframe is about 1 MB.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Why a payload is not a frame's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// It ends before its headers do.
    #[error("the payload is too short")]
    Short,
    /// A header has a value that is not allowed.
    #[error("the payload has an invalid header")]
    Invalid,
    /// A kind of packet that is not negotiated (such as interleaved H.264).
    #[error("the payload is of a kind that is not supported")]
    Unsupported,
    /// The frame would be larger than [`FRAME_BYTES_MAX`].
    #[error("the frame is too large")]
    TooLarge,
}

/// Whether a packet begins or ends a frame: all packets with one timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameBoundaries {
    /// The frame begins here.
    pub first: bool,
    /// The frame ends here.
    pub last: bool,
    /// No other frame refers to this one: its loss damages nothing else.
    pub discardable: bool,
}

/// Each audio packet is a whole frame.
const WHOLE_FRAME: FrameBoundaries = FrameBoundaries { first: true, last: true, discardable: true };

/// A frame whose packets were joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssembledFrame {
    /// The bytes, in the container's form. Empty when the packets had parameter sets only.
    pub data: Vec<u8>,
    /// Whether a decoder can begin here.
    pub keyframe: bool,
    /// The format, if this frame carries it.
    pub format: Option<TrackFormat>,
    /// Duration in RTP ticks, if the frame carries it (audio).
    pub ticks: Option<u32>,
}

/// Joins packets of one codec. Holds what outlasts a frame: H.264's parameter sets.
#[derive(Debug, Clone)]
pub enum Depacketizer {
    /// VP8.
    Vp8,
    /// VP9.
    Vp9,
    /// H.264 with the newest parameter sets.
    H264(Box<parameter_sets::ParameterSets>),
    /// AV1.
    Av1,
    /// Opus.
    Opus,
    /// G.711, either law.
    G711(Codec),
}

impl Depacketizer {
    /// A depacketizer for a codec.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        match codec {
            Codec::Vp8 => Self::Vp8,
            Codec::Vp9 => Self::Vp9,
            Codec::H264 => Self::H264(Box::default()),
            Codec::Av1 => Self::Av1,
            Codec::Opus => Self::Opus,
            Codec::Pcmu | Codec::Pcma => Self::G711(codec),
        }
    }

    /// The codec.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        match self {
            Self::Vp8 => Codec::Vp8,
            Self::Vp9 => Codec::Vp9,
            Self::H264(_) => Codec::H264,
            Self::Av1 => Codec::Av1,
            Self::Opus => Codec::Opus,
            Self::G711(codec) => *codec,
        }
    }

    /// Whether a payload begins or ends a frame.
    ///
    /// # Errors
    /// When the payload is no valid payload of the codec.
    pub fn boundaries(&self, payload: &[u8], marker: bool) -> Result<FrameBoundaries, PayloadError> {
        match self {
            Self::Vp8 => vp8::boundaries(payload, marker),
            Self::Vp9 => vp9::boundaries(payload, marker),
            Self::H264(_) => h264::boundaries(payload, marker),
            Self::Av1 => av1::boundaries(payload, marker),
            Self::Opus => opus_ticks(payload).map(|_| WHOLE_FRAME),
            Self::G711(_) if payload.is_empty() => Err(PayloadError::Short),
            Self::G711(_) => Ok(WHOLE_FRAME),
        }
    }

    /// Joins the payloads of one whole frame, in order.
    ///
    /// # Errors
    /// When they do not make a frame.
    pub fn assemble(&mut self, payloads: &[&[u8]]) -> Result<AssembledFrame, PayloadError> {
        let bytes: usize = payloads.iter().map(|p| p.len()).sum();
        if bytes > FRAME_BYTES_MAX {
            return Err(PayloadError::TooLarge);
        }
        match self {
            Self::Vp8 => vp8::assemble(payloads),
            Self::Vp9 => vp9::assemble(payloads),
            Self::H264(sets) => h264::assemble(sets, payloads),
            Self::Av1 => av1::assemble(payloads),
            Self::Opus => assemble_opus(payloads.first().ok_or(PayloadError::Short)?),
            Self::G711(codec) => {
                let data = payloads.first().ok_or(PayloadError::Short)?.to_vec();
                Ok(AssembledFrame {
                    ticks: u32::try_from(data.len()).ok(),
                    data,
                    keyframe: true,
                    format: Some(audio_format(*codec, 1, Vec::new())),
                })
            }
        }
    }
}

fn audio_format(codec: Codec, channels: u32, codec_private: Vec<u8>) -> TrackFormat {
    TrackFormat { codec, width: 0, height: 0, channels, codec_private }
}

/// `OpusHead` (RFC 7845 section 5.1) for stereo at 48 kHz: WebRTC always announces `opus/48000/2`, and a
/// mono packet is valid in a stereo stream, so a change of channels changes nothing here.
fn opus_head() -> Vec<u8> {
    let mut head = b"OpusHead\x01\x02".to_vec();
    head.extend_from_slice(&0_u16.to_le_bytes());
    head.extend_from_slice(&48_000_u32.to_le_bytes());
    head.extend_from_slice(&[0, 0, 0]);
    head
}

fn assemble_opus(packet: &[u8]) -> Result<AssembledFrame, PayloadError> {
    let ticks = opus_ticks(packet)?;
    Ok(AssembledFrame {
        data: packet.to_vec(),
        keyframe: true,
        format: Some(audio_format(Codec::Opus, 2, opus_head())),
        ticks: Some(ticks),
    })
}

/// How long an Opus packet lasts, in 48 kHz ticks (RFC 6716 section 3.1).
fn opus_ticks(packet: &[u8]) -> Result<u32, PayloadError> {
    let toc = *packet.first().ok_or(PayloadError::Short)?;
    let frame = match toc >> 3 {
        config @ 0..=11 => [480, 960, 1920, 2880][usize::from(config & 3)],
        config @ 12..=15 => [480, 960][usize::from(config & 1)],
        config => [120, 240, 480, 960][usize::from(config & 3)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(*packet.get(1).ok_or(PayloadError::Short)? & 0x3f),
    };
    // A packet may hold at most 120 ms (RFC 6716 section 3.2.5).
    match frame * frames {
        ticks @ 1..=5760 => Ok(ticks),
        _ => Err(PayloadError::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opus_packets_tell_how_long_they_last() {
        for (packet, ticks) in [
            (&[0x78_u8, 1][..], 960), // CELT 20 ms, one frame
            (&[0x79, 1], 1920),       // two frames
            (&[0x7b, 3, 1], 2880),    // three frames
            (&[0x60, 1], 480),        // hybrid 10 ms
            (&[0x18, 1], 2880),       // SILK 60 ms
            (&[0xe0, 1], 120),        // CELT 2.5 ms
        ] {
            assert_eq!(opus_ticks(packet), Ok(ticks), "{packet:x?}");
        }
        assert_eq!(opus_ticks(&[0x1b, 48]), Err(PayloadError::Invalid));
        assert_eq!(opus_ticks(&[]), Err(PayloadError::Short));
    }

    #[test]
    fn g711_lasts_a_tick_a_byte() {
        let frame = Depacketizer::new(Codec::Pcmu).assemble(&[&[0xff; 160]]).expect("frame");
        assert_eq!((frame.ticks, frame.keyframe), (Some(160), true));
    }

    proptest! {
        #[test]
        fn no_payload_makes_a_depacketizer_panic(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..6),
            marker: bool,
        ) {
            for codec in Codec::ALL {
                let mut depacketizer = Depacketizer::new(codec);
                let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
                for payload in &slices {
                    if let Err(error) = depacketizer.boundaries(payload, marker) {
                        prop_assert!(!error.to_string().is_empty());
                    }
                }
                if let Ok(frame) = depacketizer.assemble(&slices) {
                    prop_assert!(frame.data.len() <= FRAME_BYTES_MAX * 2);
                }
            }
        }
    }
}
