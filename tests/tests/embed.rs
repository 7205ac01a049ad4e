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
fn calls_are_placed_on_three_nodes_of_one_program() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let below = sandbox.path().join("nodes");
    let arguments = [&images::oci("function"), below.to_str().expect("a path")];
    let mut command = sandbox.command(&Sandbox::program("examples/scheduler"), &arguments);
    command.env("SKIFF_KEEPER", Sandbox::program("skiff-keeper"));
    let outcome = sandbox.finish(command).ok();
    let told: Vec<String> = outcome.stdout().lines().map(str::to_owned).collect();
    assert_eq!(
        told,
        [
            "resize on b: the most room",
            "resize on b: a warm slot",
            "rotate on b: the image is there",
            "rotate on b: a warm slot",
            "b tells of 2 functions",
            "a: 0 instances, 0 functions",
            "b: 2 instances, 2 functions",
            "c: 0 instances, 0 functions",
        ]
    );
    baseline.assert_restored();
}

#[test]
fn the_examples_are_short() {
    for (name, most) in [("embed", 60), ("scheduler", 150)] {
        let path = format!("{}/../shim/examples/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(path).expect("the example");
        assert!(source.lines().count() < most, "{name}: {} lines", source.lines().count());
    }
}
