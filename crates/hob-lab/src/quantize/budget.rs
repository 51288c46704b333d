//! The knapsack: one choice per tensor so that the sum of losses is least under a sum of bytes. It must not know what
//! the choices are.

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub bytes: u64,
    pub loss: f64,
}

/// A step from one choice of a tensor to a larger one.
struct Upgrade {
    tensor: usize,
    to: usize,
    more_bytes: u64,
    /// Loss that goes away per byte.
    worth: f64,
}

/// The index of the choice for each tensor (0 for one without candidates). Steps along the lower convex hulls of all
/// tensors are taken by worth, the best first, which is optimal up to the last step; smaller steps fill what is left.
///
/// # Errors
/// The least number of bytes, if the budget is below it.
pub(super) fn spend(tensors: &[Vec<Candidate>], budget: u64) -> Result<Vec<usize>, u64> {
    let hulls: Vec<Vec<usize>> = tensors.iter().map(|candidates| hull(candidates)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull.first().copied().unwrap_or(0)).collect();
    let mut used: u64 =
        tensors.iter().zip(&chosen).filter_map(|(candidates, &i)| candidates.get(i)).map(|c| c.bytes).sum();
    if used > budget {
        return Err(used);
    }
    let mut upgrades: Vec<Upgrade> = Vec::new();
    for (tensor, hull) in hulls.iter().enumerate() {
        for pair in hull.windows(2) {
            let (from, to) = (tensors[tensor][pair[0]], tensors[tensor][pair[1]]);
            let more_bytes = to.bytes - from.bytes;
            let worth = (from.loss - to.loss) / more_bytes as f64;
            upgrades.push(Upgrade { tensor, to: pair[1], more_bytes, worth });
        }
    }
    // Along one hull worth falls, so that a stable sort keeps each tensor's steps in order.
    upgrades.sort_by(|a, b| b.worth.total_cmp(&a.worth));
    let mut stopped = vec![false; tensors.len()];
    for step in upgrades {
        if stopped[step.tensor] || used + step.more_bytes > budget {
            stopped[step.tensor] = true;
            continue;
        }
        used += step.more_bytes;
        chosen[step.tensor] = step.to;
    }
    Ok(chosen)
}

/// Indices of the candidates on the lower convex hull of loss over bytes, the smallest first: each next one is larger,
/// loses less, and gains less per byte than the one before.
fn hull(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let key = |i: usize| candidates[i];
    order.sort_by(|&a, &b| key(a).bytes.cmp(&key(b).bytes).then(key(a).loss.total_cmp(&key(b).loss)));
    let worth = |a: usize, b: usize| (key(a).loss - key(b).loss) / (key(b).bytes - key(a).bytes) as f64;
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        if hull
            .last()
            .is_some_and(|&last| key(next).loss >= key(last).loss || key(next).bytes == key(last).bytes)
        {
            continue;
        }
        while let [.., before, last] = hull[..]
            && worth(before, last) <= worth(last, next)
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(u64, f64)]) -> Vec<Candidate> {
        pairs.iter().map(|&(bytes, loss)| Candidate { bytes, loss }).collect()
    }

    #[test]
    fn hulls_drop_what_no_budget_would_choose() {
        // 20 bytes lose more than 15; 30 lie above the line from 15 to 40.
        let candidates = of(&[(40, 1.0), (10, 9.0), (20, 5.5), (15, 5.0), (30, 4.5), (15, 6.0)]);
        assert_eq!(hull(&candidates), [1, 3, 0]);
        assert_eq!(hull(&[]), [0; 0]);
    }

    #[test]
    fn a_budget_below_the_least_is_refused_with_the_least() {
        let tensors = [of(&[(10, 1.0), (20, 0.5)]), Vec::new(), of(&[(7, 1.0)])];
        assert_eq!(spend(&tensors, 16), Err(17));
        assert_eq!(spend(&tensors, 17), Ok(vec![0, 0, 0]));
        assert_eq!(spend(&tensors, 26), Ok(vec![0, 0, 0]));
        assert_eq!(spend(&tensors, 27), Ok(vec![1, 0, 0]));
    }

    #[test]
    fn greedy_is_within_one_step_of_the_best_choice() {
        let mut rng = hob_testkit::rng::Rng::new(3);
        for _ in 0..200 {
            let tensors: Vec<Vec<Candidate>> = (0..4)
                .map(|_| {
                    let size = 1 + rng.below(40) as u64;
                    let scale = f64::from(rng.range_f32(0.5, 4.0));
                    [2u64, 3, 4, 6].map(|bits| (size * bits, scale * 4f64.powi(-(bits as i32)))).to_vec()
                })
                .map(|pairs| of(&pairs))
                .collect();
            let least: u64 = tensors.iter().map(|t| t[0].bytes).sum();
            let budget = least + rng.below(200) as u64;
            let total = |chosen: &[usize]| {
                let of = |f: fn(&Candidate) -> f64| {
                    chosen.iter().zip(&tensors).map(|(&i, t)| f(&t[i])).sum::<f64>()
                };
                (of(|c| c.bytes as f64), of(|c| c.loss))
            };
            let chosen = spend(&tensors, budget).expect("enough");
            let (bytes, loss) = total(&chosen);
            assert!(bytes <= budget as f64);
            let mut best = f64::INFINITY;
            let mut relaxed = f64::INFINITY;
            for code in 0..256usize {
                let choice: Vec<usize> = (0..4).map(|t| code >> (2 * t) & 3).collect();
                let (bytes, loss) = total(&choice);
                if bytes <= budget as f64 {
                    best = best.min(loss);
                } else if bytes <= budget as f64 - 240.0 {
                    relaxed = relaxed.min(loss);
                }
            }
            // No worse than the best choice of a budget smaller by one step of the largest tensor.
            let smaller = spend(&tensors, budget.saturating_sub(80).max(least)).expect("enough");
            assert!(loss >= best - 1e-12 && loss <= total(&smaller).1 + 1e-12, "{loss}, best {best}");
        }
    }
}
