//! Pipeline fragments as an operator may have changed them.

use std::path::{Path, PathBuf};

use archiver_testkit::world::World;

/// A change of one fragment: the file's name, a part of its text, and what stands there instead.
pub type Change<'a> = (&'a str, &'a str, &'a str);

/// A folder with our own fragments, changed.
pub fn changed_fragments(world: &World, changes: &[Change]) -> PathBuf {
    let folder = world.scratch().join("pipelines");
    std::fs::create_dir(&folder).expect("folder");
    for (name, before, after) in changes {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name);
        let text = std::fs::read_to_string(own).expect("fragment");
        assert!(text.contains(before), "{name}");
        std::fs::write(folder.join(name), text.replace(before, after)).expect("fragment");
    }
    folder
}
