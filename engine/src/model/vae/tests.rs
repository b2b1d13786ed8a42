//! Comparisons with the reference implementation on its tiny model with random weights, and of shortcuts with the full
//! computations that they replace.

use super::*;
use crate::backend::cpu::Cpu;
use crate::backend::{Keeping, TensorOps};
use crate::goldens::{Golden, folder};
use crate::progress::{Progress, Quiet};

type Tensor = <Cpu as TensorOps>::Tensor;

/// Relative L2 distance that rounding to f32 explains: the reference is 1e-6 from exact arithmetic.
const TOLERANCE: f64 = 5e-6;

fn load() -> (Cpu, Vae<Cpu>) {
    let b = Cpu::new();
    let (weights, config) = crate::weights::open_vae(&folder().join("official/Wan2.1_VAE.pth")).unwrap();
    let vae = Vae::load(&b.loader(Keeping::F32), &weights, &config).unwrap();
    (b, vae)
}

/// Checks that a volume equals the reference's, with its shape.
#[track_caller]
fn compare(golden: &Golden, name: &str, got: &Tensor) {
    assert_eq!(got.dims(), golden.shape(name), "{name}");
    golden.compare(name, &values(got), TOLERANCE);
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Cpu::new().download(tensor).unwrap()
}

fn join(chunks: &[Tensor]) -> Tensor {
    Cpu::new().concat(&chunks.iter().collect::<Vec<_>>(), 1).unwrap()
}

/// Returns values without a pattern, about -1 to 1.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let data: Vec<f32> = (0..shape.iter().product()).map(next).collect();
    Cpu::new().upload(&data, shape).unwrap()
}

/// Returns a picture with zero frames after it.
fn with_zeros(b: &Cpu, picture: &Tensor, frames: usize) -> Tensor {
    let [c, _, h, w] = <[usize; 4]>::try_from(b.shape(picture)).unwrap();
    let zeros = b.upload(&vec![0.0; c * (frames - 1) * h * w], &[c, frames - 1, h, w]).unwrap();
    b.concat(&[picture, &zeros], 1).unwrap()
}

/// Returns the latents of a video.
fn encode(vae: &Vae<Cpu>, video: &Tensor, tiling: Tiling) -> Result<Tensor> {
    vae.encode(&Cpu::new(), Footage::Video(video), tiling, &Quiet, None)
}

/// Returns the latents of a picture.
fn encode_picture(vae: &Vae<Cpu>, picture: &Tensor, latent_frames: usize, tiling: Tiling) -> Result<Tensor> {
    vae.encode(&Cpu::new(), Footage::Picture { picture, latent_frames }, tiling, &Quiet, None)
}

/// Returns the means of a video's latents, before normalisation.
fn encode_mu(vae: &Vae<Cpu>, video: &Tensor) -> Tensor {
    let mut mu = None;
    let mut probe = |name: &str, x: &Tensor| mu = (name == "enc.mu").then(|| x.clone());
    vae.encode(&Cpu::new(), Footage::Video(video), Tiling::Whole, &Quiet, Some(&mut probe)).unwrap();
    mu.unwrap()
}

fn decode(vae: &Vae<Cpu>, latents: &Tensor, tiling: Tiling) -> Vec<Tensor> {
    let (b, mut out) = (Cpu::new(), Vec::new());
    let mut sink = |frames: Tensor| {
        out.push(frames);
        Ok(())
    };
    vae.decode(&b, latents, tiling, &Quiet, &mut sink, None).unwrap();
    out
}

#[test]
fn encoding_is_the_references() {
    let golden = Golden::open();
    let (b, vae) = load();
    let (picture, shape) = (golden.f32("vae.enc.first_frame"), golden.shape("vae.enc.first_frame"));
    let picture = b.upload(&picture, &[3, 1, shape[1], shape[2]]).unwrap();
    let latent_frames = golden.shape("vae.enc.mu")[1];
    let video = with_zeros(&b, &picture, 4 * latent_frames - 3);
    let mut seen = std::collections::BTreeMap::<String, Vec<Tensor>>::new();
    let mut probe = |name: &str, x: &Tensor| {
        seen.entry(name.to_owned()).or_default().push(x.clone());
    };
    vae.encode(&b, Footage::Video(&video), Tiling::Whole, &Quiet, Some(&mut probe)).unwrap();
    assert_eq!(
        seen.keys().collect::<Vec<_>>(),
        ["enc.downsamples5", "enc.downsamples8", "enc.head", "enc.mid", "enc.mu"]
    );
    for (name, chunks) in &seen {
        compare(&golden, &format!("vae.{name}"), &join(chunks));
    }
    let latents = encode_picture(&vae, &picture, latent_frames, Tiling::Whole).unwrap();
    compare(&golden, "vae.enc.out", &latents);
    compare(&golden, "y", &condition(&b, &latents).unwrap());
    let latents = encode(&vae, &golden.upload("vae.enc2.in"), Tiling::Whole).unwrap();
    compare(&golden, "vae.enc2.out", &latents);
}

#[test]
fn decoding_is_the_references() {
    let golden = Golden::open();
    let (b, vae) = load();
    let latents = golden.upload("vae.dec.in");
    let (mut frames, mut seen) = (Vec::new(), std::collections::BTreeMap::<String, Vec<Tensor>>::new());
    let mut sink = |x: Tensor| {
        frames.push(x);
        Ok(())
    };
    let mut probe = |name: &str, x: &Tensor| {
        seen.entry(name.to_owned()).or_default().push(x.clone());
    };
    vae.decode(&b, &latents, Tiling::Whole, &Quiet, &mut sink, Some(&mut probe)).unwrap();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["dec.conv1", "dec.middle", "dec.upsamples3"]);
    for (name, chunks) in &seen {
        compare(&golden, &format!("vae.{name}"), &join(chunks));
    }
    let counts: Vec<_> = frames.iter().map(|x| b.shape(x)[1]).collect();
    assert!(counts[0] == 1 && counts[1..].iter().all(|n| *n == 4), "{counts:?}");
    compare(&golden, "vae.dec.out_unclamped", &join(&frames));
}

#[test]
fn frames_in_8_bits_are_the_references() {
    let golden = Golden::open();
    let (b, vae) = load();
    for sampler in ["unipc", "distill.euler"] {
        let all = golden.upload(&format!("e2e.{sampler}.latents"));
        let steps = b.shape(&all)[0];
        let last = all.get(steps - 1).unwrap().contiguous().unwrap();
        let name = format!("e2e.{sampler}.video_u8");
        let (want, shape) = (golden.values::<u8>(&name), golden.shape(&name));
        let mut got = Vec::new();
        for frames in decode(&vae, &last, Tiling::Whole) {
            got.extend(to_u8(&b, &frames).unwrap());
        }
        assert_eq!(got.len(), shape.iter().product::<usize>());
        let differing = got.iter().zip(&want).filter(|(g, w)| g != w).count();
        println!("{sampler}: {differing} of {} differ", got.len());
        assert!(got.iter().zip(&want).all(|(g, w)| g.abs_diff(*w) <= 1), "{sampler}");
        assert!(differing * 1000 < got.len(), "{sampler}: {differing} of {} differ", got.len());
    }
}

#[test]
fn bytes_are_cut_off_and_interleaved() {
    let b = Cpu::new();
    // The pixels of a 1x3 picture are red, green and blue.
    let x = b.upload(&[-1.0, 1.0, 0.0, -7.0, 7.0, 0.999, f32::NAN, -0.999, 0.004], &[3, 1, 1, 3]).unwrap();
    assert_eq!(to_u8(&b, &x).unwrap(), [0, 0, 0, 255, 255, 0, 127, 254, 128]);
    assert!(matches!(to_u8(&b, &noise(&[4, 1, 1, 3], 1)), Err(Error::Setting(_))));
}

#[test]
fn a_picture_is_encoded_as_the_video_that_it_stands_for() {
    let (b, vae) = load();
    // There are enough frames for all layers to come to rest; the extents are odd and small.
    for (height, width, latent_frames) in [(16, 24, 1), (16, 24, 2), (8, 16, 3), (16, 8, 33)] {
        let picture = noise(&[3, 1, height, width], latent_frames as u64);
        let video = with_zeros(&b, &picture, 4 * latent_frames - 3);
        let whole = encode(&vae, &video, Tiling::Whole).unwrap();
        let short = encode_picture(&vae, &picture, latent_frames, Tiling::Whole).unwrap();
        assert_eq!(whole.dims(), [16, latent_frames, height / 8, width / 8]);
        assert_eq!(values(&whole), values(&short));
    }
}

#[test]
fn layers_stop_computing_once_their_input_rests() {
    let (b, vae) = load();
    let mut computed = 0;
    let mut probe = |name: &str, x: &Tensor| {
        computed += if name == "enc.downsamples5" { x.dims()[1] } else { 0 };
    };
    let picture = &noise(&[3, 1, 16, 16], 5);
    let footage = Footage::Picture { picture, latent_frames: 21 };
    vae.encode(&b, footage, Tiling::Whole, &Quiet, Some(&mut probe)).unwrap();
    // Zeros from frame 1 on, and nine convolutions that reach back two frames each: frame 19 is the last that differs
    // from the one before, which makes half as many and one more, and one for the pair that it is in.
    assert!((10..=12).contains(&computed), "{computed} of 41 frames");
}

/// Computes tiles one after the other, then fades them element by element: the plain form of the streaming over tiles.
fn naive_tiles(
    grid: [usize; 2],
    frame: [usize; 2],
    tile: usize,
    stride: usize,
    mut run: impl FnMut([std::ops::Range<usize>; 2]) -> Tensor,
    scale: impl Fn(usize) -> usize,
) -> (Vec<f32>, [usize; 2]) {
    let starts = |len: usize| (0..len).step_by(stride).map(|s| s..len.min(s + tile)).collect::<Vec<_>>();
    let (rows, columns) = (starts(grid[0]), starts(grid[1]));
    let (mut done, mut out) = (Vec::<Vec<Tensor>>::new(), Vec::new());
    let (tile, stride) = (scale(tile), scale(stride));
    let at = |x: &[f32], dims: &[usize], c: usize, t: usize, y: usize, x_: usize| {
        x[((c * dims[1] + t) * dims[2] + y) * dims[3] + x_]
    };
    for row in &rows {
        let mut line = Vec::<Tensor>::new();
        for column in &columns {
            let x = run([row.clone(), column.clone()]);
            let dims = x.dims().to_vec();
            let mut v = values(&x);
            for axis in [2, 3] {
                let before = match axis {
                    2 => done.last().map(|above| &above[line.len()]),
                    _ => line.last(),
                };
                let Some(before) = before else { continue };
                let (old, old_dims) = (values(before), before.dims());
                let extent = (tile - stride).min(old_dims[axis]).min(dims[axis]);
                for c in 0..dims[0] {
                    for t in 0..dims[1] {
                        for y in 0..if axis == 2 { extent } else { dims[2] } {
                            for x in 0..if axis == 3 { extent } else { dims[3] } {
                                let shift = old_dims[axis] - extent;
                                let (i, a) = match axis {
                                    2 => (y, at(&old, old_dims, c, t, y + shift, x)),
                                    _ => (x, at(&old, old_dims, c, t, y, x + shift)),
                                };
                                let share = i as f64 / extent as f64;
                                let to = &mut v[((c * dims[1] + t) * dims[2] + y) * dims[3] + x];
                                *to = a * (1.0 - share) as f32 + *to * share as f32;
                            }
                        }
                    }
                }
            }
            line.push(Cpu::new().upload(&v, &dims).unwrap());
        }
        done.push(line);
    }
    let frame = frame.map(&scale);
    let (channels, frames) = (done[0][0].dims()[0], done[0][0].dims()[1]);
    let done: Vec<Vec<_>> =
        done.iter().map(|line| line.iter().map(|x| (values(x), x.dims().to_vec())).collect()).collect();
    for c in 0..channels {
        for t in 0..frames {
            for y in 0..frame[0] {
                for x in 0..frame[1] {
                    let (from, dims) = &done[y / stride][x / stride];
                    out.push(at(from, dims, c, t, y % stride, x % stride));
                }
            }
        }
    }
    (out, frame)
}

#[test]
fn tiles_are_those_of_the_definition() {
    let (b, vae) = load();
    // Both axes end with a short tile; one of these has a single latent column.
    let (height, width) = (288, 200);
    let latents = noise(&[16, 2, height / 8, width / 8], 11);
    let (want, frame) = naive_tiles(
        [height / 8, width / 8],
        [height / 8, width / 8],
        32,
        24,
        |[y, x]| {
            let part =
                b.slice(&b.slice(&latents, 2, y.start, y.len()).unwrap(), 3, x.start, x.len()).unwrap();
            join(&decode(&vae, &part, Tiling::Whole))
        },
        |v| 8 * v,
    );
    assert_eq!(frame, [height, width]);
    assert!(values(&join(&decode(&vae, &latents, Tiling::Tiled))) == want, "decoded tiles differ");

    let picture = noise(&[3, 1, height, width], 12);
    let (want, _) = naive_tiles(
        [height, width],
        [height, width],
        256,
        192,
        |[y, x]| {
            let part =
                b.slice(&b.slice(&picture, 2, y.start, y.len()).unwrap(), 3, x.start, x.len()).unwrap();
            encode_mu(&vae, &with_zeros(&b, &part, 5))
        },
        |v| v / 8,
    );
    let want = b.upload(&want, &[16, 2, height / 8, width / 8]).unwrap();
    let want = values(&normalize(&b, &want).unwrap());
    let tiles = encode_picture(&vae, &picture, 2, Tiling::Tiled).unwrap();
    assert!(values(&tiles) == want, "encoded tiles differ");
    let tiles = encode(&vae, &with_zeros(&b, &picture, 5), Tiling::Tiled).unwrap();
    assert!(values(&tiles) == want, "encoded tiles of a video differ");
}

#[test]
fn what_fits_into_one_tile_is_not_divided() {
    let (_, vae) = load();
    // The frame is wider than a stride, but not than a tile.
    let latents = noise(&[16, 2, 3, 30], 3);
    assert_eq!(
        values(&join(&decode(&vae, &latents, Tiling::Tiled))),
        values(&join(&decode(&vae, &latents, Tiling::Whole)))
    );
    let picture = noise(&[3, 1, 16, 256], 4);
    let encoded = |tiling| values(&encode_picture(&vae, &picture, 2, tiling).unwrap());
    assert_eq!(encoded(Tiling::Tiled), encoded(Tiling::Whole));
}

#[test]
fn conditioning_marks_the_first_latent_frame() {
    let b = Cpu::new();
    let latents = noise(&[16, 3, 2, 5], 8);
    let y = condition(&b, &latents).unwrap();
    assert_eq!(y.dims(), [20, 3, 2, 5]);
    let y = values(&y);
    for (i, v) in y[..4 * 30].iter().enumerate() {
        assert_eq!(*v, if i % 30 < 10 { 1.0 } else { 0.0 });
    }
    assert_eq!(y[4 * 30..], values(&latents));
}

#[test]
fn wrong_extents_and_cancelling_are_errors() {
    struct Stop;
    impl Observer for Stop {
        fn progress(&self, _: &Progress) {}
        fn canceled(&self) -> bool {
            true
        }
    }
    let (b, vae) = load();
    for shape in [[3, 4, 16, 16], [3, 1, 12, 16], [3, 1, 16, 20], [4, 1, 16, 16]] {
        let refused = encode(&vae, &noise(&shape, 1), Tiling::Whole);
        assert!(matches!(refused, Err(Error::Setting(_))), "{shape:?}");
    }
    let picture = noise(&[3, 1, 16, 16], 1);
    let refused = |picture: &Tensor, latent_frames| {
        matches!(encode_picture(&vae, picture, latent_frames, Tiling::Whole), Err(Error::Setting(_)))
    };
    assert!(refused(&picture, 0) && refused(&noise(&[3, 5, 16, 16], 1), 2));
    let latents = noise(&[16, 3, 2, 2], 1);
    for tiling in [Tiling::Whole, Tiling::Tiled] {
        let footage = Footage::Picture { picture: &picture, latent_frames: 2 };
        assert!(matches!(vae.encode(&b, footage, tiling, &Stop, None), Err(Error::Canceled)));
        let mut sink = |_| -> Result<()> { unreachable!("frames of a job that was cancelled") };
        assert!(matches!(vae.decode(&b, &latents, tiling, &Stop, &mut sink, None), Err(Error::Canceled)));
    }
    let too_few = noise(&[15, 1, 2, 2], 1);
    let refused = vae.decode(&b, &too_few, Tiling::Whole, &Quiet, &mut |_| Ok(()), None);
    assert!(matches!(refused, Err(Error::Setting(_))));
    let mut frames = 0;
    let mut sink = |_| {
        frames += 1;
        if frames == 2 { Err(Error::Canceled) } else { Ok(()) }
    };
    let stopped = vae.decode(&b, &latents, Tiling::Whole, &Quiet, &mut sink, None);
    assert!(matches!(stopped, Err(Error::Canceled)) && frames == 2);
}

#[test]
fn colours_come_near_to_decoding() {
    let (b, vae) = load();
    let colours = vae.colours(&b).unwrap();
    assert_eq!(colours, vae.colours(&b).unwrap(), "another map from the same weights");
    // The fit is measured on its own sample and on a new one. Random weights are far from linear; 17 numbers fitted to
    // 256 patches of chance alone would leave 0.93 of their own sample's variance, and 1.07 of another's.
    for (seed, most) in [(0, 0.94), (100, 0.97)] {
        let (latents, pixels): (Vec<_>, Vec<_>) = vae.colour_samples(&b, seed).unwrap().into_iter().unzip();
        let mean: [f32; 3] =
            std::array::from_fn(|c| pixels.iter().map(|p| p[c]).sum::<f32>() / pixels.len() as f32);
        let distance = |of: &dyn Fn(usize) -> [f32; 3]| -> f64 {
            let squares = |i: usize| of(i).into_iter().zip(pixels[i]).map(|(a, b)| f64::from(a - b).powi(2));
            (0..pixels.len()).flat_map(squares).sum()
        };
        let left = distance(&|i| colours.of(|c| latents[i][c])) / distance(&|_| mean);
        println!("sample {seed}: {left:.3} of the variance is left");
        assert!(left < most, "{left} of the variance is left on sample {seed}");
    }
}
