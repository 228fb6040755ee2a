//! Object keys. An archive's objects stand together under `<applicationId>/<archiveId>/`, as Vonage's do.

use crate::model::ids::{ApplicationId, ArchiveId, Epoch};

/// The thumbnail's name.
pub const THUMBNAIL: &str = "thumbnail.jpg";
/// The sheet's name.
pub const SPRITE: &str = "sprite.jpg";
/// The name of the sheet's index.
pub const SPRITE_INDEX: &str = "sprite.vtt";

/// An archive's place in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    application: ApplicationId,
    archive: ArchiveId,
}

/// The kinds of an archive's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// The composed file.
    Mp4,
    /// The ZIP of individual files.
    Zip,
    /// A picture of the composed file.
    Thumbnail,
    /// Small pictures of it from beginning to end.
    Sprite,
    /// When and where each of them is: WebVTT.
    SpriteIndex,
    /// The manifest.
    Manifest,
    /// The quality report.
    Report,
    /// Sealed segments of one moment.
    Bundle(Epoch, u32),
}

impl Kind {
    /// The MIME type of such an object.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Mp4 => "video/mp4",
            Self::Zip => "application/zip",
            Self::Thumbnail | Self::Sprite => "image/jpeg",
            Self::SpriteIndex => "text/vtt",
            Self::Manifest | Self::Report => "application/json",
            Self::Bundle(..) => "application/x-tar",
        }
    }
}

impl Keys {
    /// The keys of an archive.
    #[must_use]
    pub const fn new(application: ApplicationId, archive: ArchiveId) -> Self {
        Self { application, archive }
    }

    /// The prefix of all its keys.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{}/{}/", self.application, self.archive)
    }

    /// The prefix of its segments' keys.
    #[must_use]
    pub fn segments(&self) -> String {
        format!("{}segments/", self.prefix())
    }

    /// The key of an object.
    #[must_use]
    pub fn key(&self, kind: Kind) -> String {
        let name = match kind {
            Kind::Mp4 => "archive.mp4".to_owned(),
            Kind::Zip => "archive.zip".to_owned(),
            Kind::Thumbnail => THUMBNAIL.to_owned(),
            Kind::Sprite => SPRITE.to_owned(),
            Kind::SpriteIndex => SPRITE_INDEX.to_owned(),
            Kind::Manifest => "manifest.json".to_owned(),
            Kind::Report => "report.json".to_owned(),
            Kind::Bundle(epoch, n) => format!("segments/e{epoch}/{n:06}.tar"),
        };
        self.prefix() + &name
    }

    /// Parses a key; `None` if it is not a key of an archive.
    #[must_use]
    pub fn parse(key: &str) -> Option<(Self, Kind)> {
        let mut parts = key.splitn(3, '/');
        let (application, archive) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let kind = match parts.next()? {
            "archive.mp4" => Kind::Mp4,
            "archive.zip" => Kind::Zip,
            THUMBNAIL => Kind::Thumbnail,
            SPRITE => Kind::Sprite,
            SPRITE_INDEX => Kind::SpriteIndex,
            "manifest.json" => Kind::Manifest,
            "report.json" => Kind::Report,
            rest => {
                let (epoch, n) = rest.strip_prefix("segments/e")?.strip_suffix(".tar")?.split_once('/')?;
                Kind::Bundle(Epoch(epoch.parse().ok()?), n.parse().ok()?)
            }
        };
        let keys = Self { application, archive };
        (keys.key(kind) == key).then_some((keys, kind))
    }

    /// The epoch and the number in a bundle's key; `None` for other keys.
    #[must_use]
    pub fn parse_bundle(key: &str) -> Option<(Epoch, u32)> {
        match Self::parse(key)?.1 {
            Kind::Bundle(epoch, number) => Some((epoch, number)),
            _ => None,
        }
    }

    /// The archive.
    #[must_use]
    pub const fn archive(&self) -> ArchiveId {
        self.archive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_others_are_not_ours() {
        let archive: ArchiveId = "2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11".parse().expect("id");
        let keys = Keys::new("app-1".parse().expect("id"), archive);
        let thumbnails = [Kind::Thumbnail, Kind::Sprite, Kind::SpriteIndex];
        let others = [Kind::Mp4, Kind::Zip, Kind::Manifest, Kind::Report, Kind::Bundle(Epoch(3), 17)];
        for kind in thumbnails.into_iter().chain(others) {
            assert_eq!(Keys::parse(&keys.key(kind)), Some((keys.clone(), kind)));
        }
        assert_eq!(keys.key(Kind::Bundle(Epoch(3), 17)), format!("app-1/{archive}/segments/e0003/000017.tar"));
        for other in
            ["", "a/b/c", "app-1/x/archive.zip", "backup/2f6f2d9a-8d1c-4b1e-9c41-0b8a7d1f4c11/archive.zip.part"]
        {
            assert_eq!(Keys::parse(other), None, "{other}");
        }
    }
}
