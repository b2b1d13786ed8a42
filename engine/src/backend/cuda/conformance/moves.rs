//! The operations that only move values or add them up; their results are exact.

use super::{Both, Check, IN_BF16, Options, Pair, noise};
use crate::Result;
use crate::backend::{SequenceOps, TensorOps};

pub(super) fn check(check: &Check) -> Result<()> {
    let cuda = check.open(&Options::default())?;
    let both = Both::new(check, &cuda, IN_BF16);
    for shape in [&[5][..], &[3, 7], &[6, 40], &[3, 2, 5, 7], &[16, 3, 4, 6]] {
        let x = both.noise(shape, 1)?;
        both.compare("upload, download", format!("{shape:?}"), &x, 0.0)?;
        for axis in 0..shape.len() {
            let head = both.slice(&x, axis, 0, 1)?;
            let tail = both.slice(&x, axis, 1, shape[axis] - 1)?;
            both.compare("slice", format!("{shape:?}, axis {axis}"), &tail, 0.0)?;
            let whole = both.concat(&[&tail, &head], axis)?;
            both.compare("concat", format!("{shape:?}, axis {axis}"), &whole, 0.0)?;
        }
    }
    for (count, shape) in
        [(1, vec![7]), (2, vec![3, 40]), (8, vec![2, 3, 4, 5]), (9, vec![33]), (17, vec![9])]
    {
        let terms = (0..count).map(|i| both.noise(&shape, i)).collect::<Result<Vec<Pair>>>()?;
        let factors = noise(count as usize, 99);
        let cpu: Vec<_> = factors.iter().copied().zip(terms.iter().map(|t| &t.cpu)).collect();
        let gpu: Vec<_> = factors.iter().copied().zip(terms.iter().map(|t| &t.cuda)).collect();
        let sum = Pair { cpu: both.cpu.linear_combination(&cpu)?, cuda: cuda.linear_combination(&gpu)? };
        both.compare("linear combination", format!("{count} of {shape:?}"), &sum, 0.0)?;
    }
    // The elements are not contiguous.
    let part = both.slice(&both.noise(&[5, 6], 4)?, 1, 1, 3)?;
    let twice = Pair {
        cpu: both.cpu.linear_combination(&[(2.0, &part.cpu)])?,
        cuda: cuda.linear_combination(&[(2.0, &part.cuda)])?,
    };
    both.compare("linear combination", "a part", &twice, 0.0)?;

    for [c, t, h, w] in [[1, 1, 2, 2], [36, 3, 8, 12], [5, 2, 6, 10], [16, 1, 2, 514]] {
        let x = both.noise(&[c, t, h, w], 1)?;
        let tokens = Pair { cpu: both.cpu.patchify(&x.cpu)?, cuda: cuda.patchify(&x.cuda)? };
        both.compare("patchify", format!("{c} {t} {h} {w}"), &tokens, 0.0)?;
        let grid = [t, h, w];
        let x =
            Pair { cpu: both.cpu.unpatchify(&tokens.cpu, grid)?, cuda: cuda.unpatchify(&tokens.cuda, grid)? };
        both.compare("unpatchify", format!("{c} {t} {h} {w}"), &x, 0.0)?;
    }
    Ok(())
}
