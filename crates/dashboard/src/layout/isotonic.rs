//! Things in a row, each as near to where it would like to be as their order and distances allow.

/// Positions with `at[i] - at[i-1] >= apart[i]` that differ least, in squares, from `wanted`: isotonic regression by
/// pooling adjacent violators (Ayer et al., 1955). `apart[0]` is not looked at.
pub(super) fn arrange(wanted: &[f64], apart: &[f64]) -> Vec<f64> {
    struct Pool {
        sum: f64,
        count: f64,
        members: usize,
    }
    let mut offset = 0.0;
    let mut offsets = Vec::with_capacity(wanted.len());
    let mut pools: Vec<Pool> = Vec::new();
    for (at, (wish, gap)) in wanted.iter().zip(apart).enumerate() {
        if at > 0 {
            offset += gap;
        }
        offsets.push(offset);
        let mut pool = Pool { sum: wish - offset, count: 1.0, members: 1 };
        while let Some(last) = pools.last() {
            if last.sum / last.count <= pool.sum / pool.count {
                break;
            }
            pool.sum += last.sum;
            pool.count += last.count;
            pool.members += last.members;
            pools.pop();
        }
        pools.push(pool);
    }
    let means = pools.iter().flat_map(|p| std::iter::repeat_n(p.sum / p.count, p.members));
    means.zip(offsets).map(|(mean, offset)| mean + offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_room_stands_where_he_wants() {
        assert_eq!(arrange(&[0.0, 50.0, 100.0], &[0.0, 20.0, 20.0]), [0.0, 50.0, 100.0]);
    }

    #[test]
    fn those_in_each_others_way_share_the_way() {
        assert_eq!(arrange(&[10.0, 10.0], &[0.0, 20.0]), [0.0, 20.0]);
        assert_eq!(arrange(&[30.0, 0.0, 30.0], &[0.0, 10.0, 10.0]), [10.0, 20.0, 30.0]);
    }
}
