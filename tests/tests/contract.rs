//! The contract's table names tests that are there.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a test of this name may be: `unit a/b::c` is in `shim/src/a/b.rs`, or below `a/b/`; others are in `tests/tests`,
/// or where their name says from the top on.
fn sources(is_unit: bool, module: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if module.starts_with("runtime/") {
        return vec![root.join(format!("{module}.rs"))];
    }
    if !is_unit {
        return vec![root.join("tests/tests").join(format!("{module}.rs"))];
    }
    let base = root.join("shim/src").join(module);
    vec![base.with_extension("rs"), base.join("mod.rs"), base.join("tests.rs"), base.join("tests/mod.rs")]
}

/// Whether a source has this test, and not just a function of the name.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_it = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
    };
    let is_test = |before: &[&str]| {
        let mut attributes =
            before.iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        attributes.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    };
    lines.iter().enumerate().any(|(number, line)| is_it(line) && is_test(&lines[..number]))
}

/// What is wrong with the names in a row's last cell: `one::name`, or `name` for another of the same file.
fn wrong(cell: &str) -> Vec<String> {
    let (mut is_unit, mut module, mut wrong) = (false, String::new(), Vec::new());
    // What is in brackets is said of them.
    let names: String =
        cell.split('(').map(|part| part.split_once(')').map_or(part, |(_, rest)| rest)).collect();
    let mut parts = names.split('`');
    while let (Some(before), Some(name)) = (parts.next(), parts.next()) {
        if before.contains("unit") {
            is_unit = true;
        }
        let function = match name.split_once("::") {
            Some((file, rest)) => {
                file.clone_into(&mut module);
                is_unit = before.contains("unit") || (is_unit && !sources(false, &module)[0].exists());
                // A module in that file may come between.
                rest.rsplit("::").next()
            }
            None if name.contains('/') || sources(false, name)[0].exists() => {
                is_unit = before.contains("unit") || (is_unit && !sources(false, name)[0].exists());
                name.clone_into(&mut module);
                None
            }
            None => Some(name),
        };
        let texts: Vec<String> =
            sources(is_unit, &module).iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        let is_there = match function {
            _ if texts.is_empty() => false,
            Some(function) => texts.iter().any(|text| has_test(text, function)),
            None => true,
        };
        if !is_there {
            wrong.push(name.to_owned());
        }
    }
    wrong
}

#[test]
fn every_test_that_the_contract_names_is_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/contract.md");
    let text = fs::read_to_string(path).expect("the contract");
    let (mut rows, mut missing) = (0, Vec::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "line {}: {line}", number + 1);
        if cells[2].trim() == "test" {
            continue;
        }
        rows += 1;
        let names_one = cells[2].contains('`') || cells[2].starts_with("the same");
        if !names_one && !cells[1].starts_with("n/a") {
            missing.push(format!("line {}: no test", number + 1));
        }
        missing.extend(wrong(cells[2]).into_iter().map(|name| format!("line {}: {name}", number + 1)));
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(rows > 400, "{rows} rows");
}

#[test]
fn a_name_that_is_not_there_is_found() {
    assert_eq!(wrong("`contract::has_test`"), ["contract::has_test"], "a function that is no test");
    assert_eq!(wrong("`contract::no_such_test`, unit `pool/slots::no_such_test`").len(), 2);
    assert_eq!(
        wrong("`no_such_file::x`, `contract::a_name_that_is_not_there_is_found`"),
        ["no_such_file::x"]
    );
}
