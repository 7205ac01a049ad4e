//! The library in another program's own tokio runtime, as the example shows it.

use skiff_tests::{Baseline, Sandbox, images};

#[test]
fn the_example_invokes_a_function_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let mut command = sandbox.command(&Sandbox::program("examples/embed"), &[&images::oci("function")]);
    command.env("SKIFF_KEEPER", Sandbox::program("skiff-keeper"));
    command.env("SKIFF_STATE_DIR", sandbox.state_dir()).env("SKIFF_RUN_DIR", sandbox.run_dir());
    let outcome = sandbox.finish(command).ok();
    assert!(outcome.stdout().contains("/invoke"), "{outcome:?}");
    baseline.assert_restored();
}

#[test]
fn the_example_is_short() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shim/examples/embed.rs");
    let source = std::fs::read_to_string(path).expect("the example");
    assert!(source.lines().count() < 60, "{} lines", source.lines().count());
}
