//! Counters with one writer, and Envoy's default histogram over them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that one worker adds to and anybody may read.
///
/// It is a load and a store, not a locked add: a worker is one thread, and every cell
/// belongs to one worker. Two writers would lose counts, not corrupt anything.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds as Envoy's default, which Istio's dashboards expect, in their textual form
/// (reference cli-and-telemetry 3.1).
pub(crate) const BOUNDS: [(f64, &str); 19] = [
    (0.5, "0.5"),
    (1.0, "1"),
    (5.0, "5"),
    (10.0, "10"),
    (25.0, "25"),
    (50.0, "50"),
    (100.0, "100"),
    (250.0, "250"),
    (500.0, "500"),
    (1000.0, "1000"),
    (2500.0, "2500"),
    (5000.0, "5000"),
    (10000.0, "10000"),
    (30000.0, "30000"),
    (60000.0, "60000"),
    (300_000.0, "300000"),
    (600_000.0, "600000"),
    (1_800_000.0, "1800000"),
    (3_600_000.0, "3600000"),
];

/// Number of cells: one per bound and one for what is beyond.
pub(crate) const CELLS: usize = BOUNDS.len() + 1;

/// A histogram with one writer. The sum is kept in thousandths of the unit.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    cells: [Counter; CELLS],
    sum_thousandths: Counter,
}

/// What a histogram held when it was read; summed over workers.
#[derive(Debug, Clone, Default)]
pub(crate) struct HistogramReading {
    pub(crate) cells: [u64; CELLS],
    pub(crate) sum_thousandths: u64,
}

impl Histogram {
    /// Adds what another one counted.
    pub(crate) fn absorb(&self, other: &Self) {
        for (mine, theirs) in self.cells.iter().zip(&other.cells) {
            mine.add(theirs.value());
        }
        self.sum_thousandths.add(other.sum_thousandths.value());
    }

    /// Counts one value given in thousandths of the unit.
    pub(crate) fn record(&self, thousandths: u64) {
        let value = thousandths as f64 / 1000.0;
        let index = BOUNDS.partition_point(|(bound, _)| *bound < value);
        if let Some(cell) = self.cells.get(index) {
            cell.add(1);
        }
        self.sum_thousandths.add(thousandths);
    }

    pub(crate) fn read_into(&self, reading: &mut HistogramReading) {
        for (sum, cell) in reading.cells.iter_mut().zip(&self.cells) {
            *sum += cell.value();
        }
        reading.sum_thousandths += self.sum_thousandths.value();
    }
}

impl HistogramReading {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, cell) in self.cells.iter_mut().zip(other.cells) {
            *sum += cell;
        }
        self.sum_thousandths += other.sum_thousandths;
    }

    pub(crate) fn count(&self) -> u64 {
        self.cells.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bucket() {
        let histogram = Histogram::default();
        for thousandths in [500, 501, 1000, 1001, 3_600_000_000, 3_600_000_001] {
            histogram.record(thousandths);
        }
        let mut reading = HistogramReading::default();
        histogram.read_into(&mut reading);
        assert_eq!(reading.cells[..3], [1, 2, 1]);
        assert_eq!(reading.cells[18..], [1, 1]);
        assert_eq!(reading.count(), 6);
    }
}
