//! The law by which a cost grows with a size: `cost ~ size^exponent`, by least squares on the logarithms.

use serde::Serialize;

/// A fitted power law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Growth {
    /// 0 means that the cost does not depend on the size, 1 that it is proportional to it.
    pub exponent: f64,
    /// The standard error of the exponent; zero with two points, which any line fits.
    pub error: f64,
    /// The cost at size 1, in the unit of the costs.
    pub at_one: f64,
}

impl Growth {
    /// The cost that the law gives for a size.
    #[must_use]
    pub fn cost(&self, size: f64) -> f64 {
        self.at_one * size.powf(self.exponent)
    }
}

/// Fits a power law to (size, cost) points. `None` with fewer than two different sizes; points that are not positive
/// have no logarithm and are left out.
#[must_use]
pub fn growth(points: &[(f64, f64)]) -> Option<Growth> {
    let points: Vec<(f64, f64)> =
        points.iter().filter(|(size, cost)| *size > 0.0 && *cost > 0.0).map(|(x, y)| (x.ln(), y.ln())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
    if points.len() < 2 || spread < 1e-9 {
        return None;
    }
    let exponent = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    let left: f64 = points.iter().map(|(x, y)| (y - mean_y - exponent * (x - mean_x)).powi(2)).sum();
    let error = if points.len() > 2 { (left / (count - 2.0) / spread).sqrt() } else { 0.0 };
    Some(Growth { exponent, error, at_one: (mean_y - exponent * mean_x).exp() })
}

/// The median of some figures; `None` if there are none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];

    fn planted(cost: impl Fn(f64) -> f64) -> Growth {
        let points: Vec<_> = SIZES.iter().map(|size| (*size, cost(*size))).collect();
        growth(&points).unwrap()
    }

    #[test]
    fn planted_laws_are_found_again() {
        for exponent in [0.0, 0.5, 1.0, 2.0] {
            let found = planted(|size| 80.0 * size.powf(exponent));
            assert!((found.exponent - exponent).abs() < 1e-9, "{exponent}: {found:?}");
            assert!((found.at_one - 80.0).abs() < 1e-6 && found.error < 1e-6, "{found:?}");
            assert!((found.cost(100.0) - 80.0 * 100.0_f64.powf(exponent)).abs() < 1e-3);
        }
    }

    #[test]
    fn noise_around_a_constant_is_not_growth_and_a_hidden_linear_part_is() {
        let noisy = [(1.0, 88.0), (10.0, 73.6), (100.0, 84.8), (1000.0, 77.6)];
        let constant = growth(&noisy).unwrap();
        assert!(constant.exponent.abs() < 0.05 && constant.error > 0.0, "{constant:?}");
        // 0.5 µs a member beside 80 µs that do not grow: seven times the cost at 1,000 members.
        assert!(planted(|size| 80.0 + 0.5 * size).exponent > 0.2);
    }

    #[test]
    fn a_law_needs_two_sizes() {
        assert_eq!(growth(&[]), None);
        assert_eq!(growth(&[(10.0, 3.0), (10.0, 4.0)]), None);
        assert_eq!(growth(&[(10.0, 3.0), (0.0, 4.0)]), None);
        assert!(growth(&[(10.0, 3.0), (20.0, 4.0)]).is_some());
    }

    #[test]
    fn the_median_ignores_one_outlier() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 900.0, 1.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
