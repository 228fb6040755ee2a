use super::*;

fn element(id: &[u8], content: &[u8]) -> Vec<u8> {
    let size = (content.len() as u64 | 1 << 56).to_be_bytes();
    [id, &size, content].concat()
}

fn block(track: u8, relative: i16, keyframe: bool, data: &[u8]) -> Vec<u8> {
    let [high, low] = relative.to_be_bytes();
    element(&[0xA3], &[&[0x80 | track, high, low, if keyframe { 0x80 } else { 0 }], data].concat())
}

/// One document: a picture track and a sound track, B-frames, and a block of a group that refers to another.
fn document() -> Vec<u8> {
    let info = [element(&[0x2A, 0xD7, 0xB1], &[0x0F, 0x42, 0x40]), element(&[0x44, 0x89], &500.0_f64.to_be_bytes())];
    let size = [element(&[0xB0], &[1, 64]), element(&[0xBA], &[240])].concat();
    let video = [
        element(&[0xD7], &[1]),
        element(&[0x83], &[1]),
        element(&[0x86], b"V_VP8"),
        element(&[0x63, 0xA2], &[7, 8]),
        element(&[0xE0], &size),
    ];
    let audio = [element(&[0xD7], &[2]), element(&[0x83], &[2]), element(&[0x86], b"A_OPUS")];
    let tracks = [element(&[0xAE], &video.concat()), element(&[0xAE], &audio.concat())];
    let group = [element(&[0xA1], &[0x81, 0, 120, 0, 9]), element(&[0xFB], &[1])].concat();
    let cluster = [
        element(&[0xE7], &[100]),
        block(1, 0, true, b"key"),
        block(2, 5, true, b"s"),
        block(1, 80, false, b"p"),
        block(1, -40, false, b"b"),
        element(&[0xA0], &group),
        // As GStreamer writes it: the reference first.
        element(&[0xA0], &[element(&[0xFB], &[1]), element(&[0xA1], &[0x81, 0, 140, 0, 9])].concat()),
        element(&[0xA0], &element(&[0xA1], &[0x81, 0, 160, 0, b'a', b'g', b'a', b'i', b'n'])),
    ];
    let before =
        [element(&[0x15, 0x49, 0xA9, 0x66], &info.concat()), element(&[0x16, 0x54, 0xAE, 0x6B], &tracks.concat())];
    let cue = element(&[0xF1], &u16::try_from(before.concat().len()).expect("small").to_be_bytes());
    let cues = element(&[0x1C, 0x53, 0xBB, 0x6B], &element(&[0xBB], &element(&[0xB7], &cue)));
    let segment = [before.concat(), element(&[0x1F, 0x43, 0xB6, 0x75], &cluster.concat()), cues].concat();
    [element(&[0x1A, 0x45, 0xDF, 0xA3], &[0xEC, 0x80]), element(&[0x18, 0x53, 0x80, 0x67], &segment)].concat()
}

fn read(bytes: &[u8]) -> Result<Contents, BadFile> {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), bytes).expect("write");
    contents(file.path())
}

#[test]
fn a_document_is_read_with_its_tracks_blocks_and_duration() {
    let found = read(&document()).expect("a document");
    let [video, audio] = found.tracks.as_slice() else { panic!("{found:?}") };
    assert_eq!(found.duration_ns, 500_000_000);
    assert_eq!((video.codec_id.as_str(), &video.codec_private[..], video.size), ("V_VP8", &[7, 8][..], (320, 240)));
    assert_eq!((video.blocks, video.begins_with_keyframe, video.last_ns), (6, true, 260_000_000));
    let sync: Vec<(u64, u64)> = video.sync_points.iter().map(|at| (at.ns / 1_000_000, at.size)).collect();
    assert_eq!(sync, [(100, 3), (260, 5)]);
    assert_eq!((audio.is_video, audio.blocks, audio.last_ns), (false, 1, 105_000_000));
}

#[test]
fn two_documents_one_behind_the_other_and_what_is_cut_or_goes_on_are_refused() {
    let one = document();
    for (name, bytes) in [
        ("two documents", [&one[..], &one].concat()),
        ("something behind it", [&one[..], &element(&[0xEC], &[0; 9])].concat()),
        ("nothing", Vec::new()),
        ("another format", b"\0\0\0\x18ftypisom".to_vec()),
    ] {
        assert!(read(&bytes).is_err(), "{name}");
    }
    for cut in 0..one.len() {
        assert!(read(&one[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn an_index_that_points_beside_its_clusters_is_refused() {
    let mut bytes = document();
    let last = bytes.len() - 1;
    bytes[last] += 1;
    assert!(matches!(read(&bytes), Err(BadFile::Structure(what)) if what.contains("index")));
}

#[test]
fn damaged_bytes_do_no_harm() {
    let one = document();
    for at in 0..one.len() {
        for byte in [0, 1, 0x1A, 0x40, 0x7F, 0x80, 0xA3, 0xFF] {
            let mut bytes = one.clone();
            bytes[at] = byte;
            if let Ok(found) = read(&bytes) {
                for point in found.tracks.iter().flat_map(|track| &track.sync_points) {
                    assert!(point.at + point.size <= one.len() as u64);
                }
            }
        }
    }
}
