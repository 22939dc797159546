//! The cores together, on a bad network: seeds in short form. `cargo xtask sim` runs larger ones.

use weave_tests::sim::{Options, run};

#[test]
fn everything_is_agreed_upon_in_the_end() {
    for seed in 0..20 {
        println!("{}", run(&Options::small(seed)));
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(&Options::small(1)), run(&Options::small(1)));
}
