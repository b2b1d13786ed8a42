//! Every golden of the tiny reference model, and files in other layouts.

use animd_tests::parity;

#[test]
fn every_golden_is_met() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-a");
    let items = parity::run(std::path::Path::new(dir)).expect("the fixture is whole");
    let bad: Vec<_> = items.iter().filter(|i| !i.ok).map(ToString::to_string).collect();
    assert!(bad.is_empty(), "{} of {} items:\n{}", bad.len(), items.len(), bad.join("\n"));
    // The items come from the fixture's own list; a small number would mean that some were passed over.
    assert!(items.len() > 500, "{} items", items.len());
}

#[test]
fn files_in_other_layouts_hold_what_they_should() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/layouts");
    let items = parity::run(std::path::Path::new(dir)).expect("the fixture is whole");
    let bad: Vec<_> = items.iter().filter(|i| !i.ok).map(ToString::to_string).collect();
    assert!(bad.is_empty(), "{} of {} items:\n{}", bad.len(), items.len(), bad.join("\n"));
    // Each of the eleven entries has an item at least, and those of transformers have known rows and sums.
    assert!(items.len() > 25, "{} items", items.len());
}
