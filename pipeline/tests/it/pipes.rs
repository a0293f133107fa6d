//! Standard output as a shell uses it.

use std::process::{Command, Stdio};

#[test]
fn a_reader_that_has_gone_is_no_error() {
    // A document longer than a pipe holds, so that writing meets the closed end.
    let mut child = Command::new(env!("CARGO_BIN_EXE_sunder"))
        .args(["config", "schema"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sunder starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("sunder ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
