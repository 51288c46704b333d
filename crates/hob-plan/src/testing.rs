//! Folders that look like `/` of some machine.

use hob_testkit::temp::TempDir;

/// A folder with these files in it; it vanishes with the value.
pub fn fake_root(name: &str, files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new(name);
    for (path, text) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, text).expect("file");
    }
    dir
}
