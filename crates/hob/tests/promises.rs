//! Every promise names a test that exists.

use std::path::Path;

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("PROMISES.md")).unwrap();
    let mut promises = 0;
    for line in text.lines().filter(|l| l.starts_with("- ")) {
        let mut file = None;
        let mut tests = 0;
        for name in line.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                let source = std::fs::read_to_string(root.join(name));
                file = Some(source.unwrap_or_else(|e| panic!("{name}: {e}, promised by: {line}")));
            } else {
                let source = file.as_ref().unwrap_or_else(|| panic!("no file before {name} in: {line}"));
                assert!(source.contains(&format!("fn {name}(")), "no test {name}, promised by: {line}");
                tests += 1;
            }
        }
        assert!(tests > 0, "a promise without a test: {line}");
        promises += 1;
    }
    assert!(promises >= 30, "only {promises} promises were found");
}
