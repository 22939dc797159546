//! The cores together, on a bad network: seeds in short form. `cargo xtask sim` runs larger ones.

use weave_tests::sim::{Options, run};

fn short(seed: u64) -> Options {
    Options {
        conn_limit: if seed % 4 == 3 { 8 } else { 0 },
        originals: [0, 20, 50, 100][seed as usize % 4],
        ..Options::new(seed, 10 + (seed as usize * 7) % 11)
    }
}

#[test]
fn everything_is_agreed_upon_in_the_end() {
    for seed in 0..20 {
        println!("{}", run(&short(seed)));
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(&short(1)), run(&short(1)));
}
