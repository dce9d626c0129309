//! Networks of a test's own, and that nothing of them remains.

use std::time::Duration;

use anyhow::Result;
use ringmail_testbed::Namespace;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_namespace_has_nothing_but_loopback() -> Result<()> {
    let namespace = Namespace::new()?;
    let links = namespace.ip("-oneline link show")?;
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.contains("lo:") && links.contains("UP"), "{links}");
    Ok(())
}

#[test]
fn processes_and_files_end_with_the_namespace() -> Result<()> {
    let namespace = Namespace::new()?;
    let directory = namespace.directory().to_owned();
    let process = namespace.spawn("sh", &["-c", "echo up; exec sleep 1000"])?;
    process.wait_for("up", LIMIT)?;
    drop(namespace);
    assert_ne!(process.finish(LIMIT)?.status, 0);
    assert!(!directory.exists());
    Ok(())
}

#[test]
fn two_namespaces_are_connected_by_a_pair_of_interfaces() -> Result<()> {
    let (one, other) = (Namespace::new()?, Namespace::new()?);
    one.connect("left", &other, "right")?;
    one.ip("link show left")?;
    other.ip("link show right")?;
    Ok(())
}
