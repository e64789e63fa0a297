//! Two things measured in turns, so that whatever else the machine does meets both alike.

/// How many rounds, where nothing else is asked for.
pub const ROUNDS: usize = 7;

/// What two ways give that take turns, a pair for each round; an odd number of rounds has a middle one.
pub fn in_turns<T>(
    rounds: usize,
    mut ours: impl FnMut() -> anyhow::Result<T>,
    mut other: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<Vec<(T, T)>> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        // Neither is always the second.
        pairs.push(if round % 2 == 0 {
            let first = ours()?;
            (first, other()?)
        } else {
            let first = other()?;
            (ours()?, first)
        });
    }
    Ok(pairs)
}

/// The medians of both ways.
pub fn medians(rounds: &[(f64, f64)]) -> (f64, f64) {
    (
        median(rounds.iter().map(|round| round.0).collect()),
        median(rounds.iter().map(|round| round.1).collect()),
    )
}

/// The middle one of an odd number of figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_first_in_turn() {
        let order = std::cell::RefCell::new(String::new());
        let go = |who: char| {
            order.borrow_mut().push(who);
            Ok(if who == 'a' { 1.0 } else { 2.0 })
        };
        let rounds = in_turns(ROUNDS, || go('a'), || go('b'));
        assert_eq!(rounds.map(|rounds| medians(&rounds)).ok(), Some((1.0, 2.0)));
        assert_eq!(order.into_inner(), "abbaabbaabbaab");
    }

    #[test]
    fn one_round_that_was_disturbed_does_not_count() {
        assert_eq!(medians(&[(1.0, 5.0), (90.0, 4.0), (2.0, 0.1)]), (2.0, 4.0));
    }
}
