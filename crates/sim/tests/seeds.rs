//! A few seeds, in the time that a test may take, and what makes a search worth trusting:
//! that a seed always gives the same run.

use sim::plan::Plan;
use sim::report::Figures;
use sim::run::run;

/// Seeds that are run with every test run.
const SEEDS: u64 = 25;

#[test]
fn no_seed_breaks_a_promise() {
    let mut figures = Figures::default();
    for seed in 0..SEEDS {
        let outcome = run(Plan::of(seed), false);
        figures.add(&outcome.figures);
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}: {violation}\nrepeat: {}", outcome.plan.command());
        }
    }
    // Seeds in which nothing happens break nothing.
    for seen in ["delivered again", "duplicate", "dead letter", "unanswered", "move done"] {
        assert!(figures.seen.contains_key(seen), "no client saw {seen:?}:\n{figures}");
    }
    assert!(figures.power > 0 && figures.compared > 0, "{figures}");
}

#[test]
fn one_seed_twice_is_one_run() {
    for seed in [3, 7, 11] {
        let (first, second) = (run(Plan::of(seed), false), run(Plan::of(seed), false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.figures.events, second.figures.events, "seed {seed}");
        assert_eq!(first.violation, second.violation, "seed {seed}");
    }
    let other = run(Plan::of(4), false);
    assert_ne!(other.trace, run(Plan::of(3), false).trace, "another seed is another run");
}
