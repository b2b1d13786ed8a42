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
fn encode(vae: &Vae<Cpu>, video: &Tensor, tile: Option<usize>) -> Result<Tensor> {
    vae.encode(&Cpu::new(), Footage::Video(video), tile, &Quiet, None)
}

/// Returns the latents of a picture.
fn encode_picture(
    vae: &Vae<Cpu>,
    picture: &Tensor,
    latent_frames: usize,
    tile: Option<usize>,
) -> Result<Tensor> {
    vae.encode(&Cpu::new(), Footage::Picture { picture, last: None, latent_frames }, tile, &Quiet, None)
}

/// Returns the frames of all tiles.
fn decode(vae: &Vae<Cpu>, latents: &Tensor, tile: Option<usize>) -> Vec<Piece<Tensor>> {
    let (b, mut out) = (Cpu::new(), Vec::new());
    let mut sink = |piece: Piece<Tensor>| {
        out.push(piece);
        Ok(())
    };
    vae.decode(&b, latents, tile, &Quiet, &mut sink, None).unwrap();
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
    vae.encode(&b, Footage::Video(&video), None, &Quiet, Some(&mut probe)).unwrap();
    assert_eq!(
        seen.keys().collect::<Vec<_>>(),
        ["enc.downsamples5", "enc.downsamples8", "enc.head", "enc.mid", "enc.mu"]
    );
    for (name, chunks) in &seen {
        compare(&golden, &format!("vae.{name}"), &join(chunks));
    }
    let latents = encode_picture(&vae, &picture, latent_frames, None).unwrap();
    compare(&golden, "vae.enc.out", &latents);
    compare(&golden, "y", &condition(&b, &latents, false).unwrap());
    let latents = encode(&vae, &golden.upload("vae.enc2.in"), None).unwrap();
    compare(&golden, "vae.enc2.out", &latents);
}

#[test]
fn decoding_is_the_references() {
    let golden = Golden::open();
    let (b, vae) = load();
    let latents = golden.upload("vae.dec.in");
    let (mut frames, mut seen) = (Vec::new(), std::collections::BTreeMap::<String, Vec<Tensor>>::new());
    let mut sink = |piece: Piece<Tensor>| {
        frames.push(piece.frames);
        Ok(())
    };
    let mut probe = |name: &str, x: &Tensor| {
        seen.entry(name.to_owned()).or_default().push(x.clone());
    };
    vae.decode(&b, &latents, None, &Quiet, &mut sink, Some(&mut probe)).unwrap();
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
        let mut sink = |part: Rendered| {
            got.extend(part.frames);
            Ok(())
        };
        vae.render(&b, &last, None, &Quiet, &mut sink).unwrap();
        assert_eq!(got.len(), shape.iter().product::<usize>());
        let differing = got.iter().zip(&want).filter(|(g, w)| g != w).count();
        println!("{sampler}: {differing} of {} differ", got.len());
        assert!(got.iter().zip(&want).all(|(g, w)| g.abs_diff(*w) <= 1), "{sampler}");
        assert!(differing * 1000 < got.len(), "{sampler}: {differing} of {} differ", got.len());
    }
}

#[test]
fn a_picture_is_encoded_as_the_video_that_it_stands_for() {
    let (b, vae) = load();
    // There are enough frames for all layers to come to rest; the extents are odd and small.
    for (height, width, latent_frames) in [(16, 24, 1), (16, 24, 2), (8, 16, 3), (16, 8, 33)] {
        let picture = noise(&[3, 1, height, width], latent_frames as u64);
        let video = with_zeros(&b, &picture, 4 * latent_frames - 3);
        let whole = encode(&vae, &video, None).unwrap();
        let short = encode_picture(&vae, &picture, latent_frames, None).unwrap();
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
    let footage = Footage::Picture { picture, last: None, latent_frames: 21 };
    vae.encode(&b, footage, None, &Quiet, Some(&mut probe)).unwrap();
    // Zeros from frame 1 on, and nine convolutions that reach back two frames each: frame 19 is the last that differs
    // from the one before, which makes half as many and one more, and one for the pair that it is in.
    assert!((10..=12).contains(&computed), "{computed} of 41 frames");
}

/// Sizes in latent pixels, latent frames, and sides of tiles: longer than the frame, no divisor of it, shorter than a
/// halo, and a single pixel.
const TILED: [([usize; 2], usize, &[usize]); 4] =
    [([18, 21], 1, &[30, 8]), ([17, 9], 2, &[16, 5]), ([5, 11], 3, &[4, 3]), ([2, 3], 2, &[1])];

/// Puts the pieces of a decode together, value by value: `[3, frames, height, width]`.
fn assemble(pieces: &[Piece<Tensor>], [frames, height, width]: [usize; 3]) -> Vec<f32> {
    let mut whole = vec![f32::NAN; 3 * frames * height * width];
    for Piece { frames: x, first, area } in pieces {
        let from = values(x);
        let [_, n, h, w] = <[usize; 4]>::try_from(x.dims()).unwrap();
        assert_eq!([h, w], [area.rows.len(), area.columns.len()]);
        for (i, value) in from.into_iter().enumerate() {
            let [c, t, y, x] = [i / (n * h * w), i / (h * w) % n, i / w % h, i % w];
            let row = ((c * frames + first + t) * height + area.rows.start + y) * width;
            let to = &mut whole[row + area.columns.start + x];
            assert!(to.is_nan(), "tiles overlap");
            *to = value;
        }
    }
    whole
}

#[test]
fn decoded_tiles_are_the_whole() {
    let (b, vae) = load();
    for ([height, width], latent_frames, sides) in TILED {
        let latents = noise(&[16, latent_frames, height, width], 11);
        let size = [4 * latent_frames - 3, 8 * height, 8 * width];
        let rendered = |side| {
            let (mut bytes, mut done) = (Vec::new(), 0.0);
            let mut sink = |part: Rendered| {
                assert!(part.done > done, "{} after {done}", part.done);
                done = part.done;
                bytes.extend(part.frames);
                Ok(())
            };
            vae.render(&b, &latents, side, &Quiet, &mut sink).unwrap();
            assert!((done - 1.0).abs() < 1e-9, "{done}");
            bytes
        };
        let (want, bytes) = (assemble(&decode(&vae, &latents, None), size), rendered(None));
        assert!(want.iter().all(|v| v.is_finite()) && bytes.len() == want.len());
        for &side in sides {
            let pieces = decode(&vae, &latents, Some(side));
            let tiles = height.div_ceil(side) * width.div_ceil(side);
            assert_eq!(pieces.len(), tiles * latent_frames);
            assert!(assemble(&pieces, size) == want, "{height}x{width} in tiles of {side}");
            assert!(rendered(Some(side)) == bytes, "{height}x{width} in tiles of {side}, in 8 bits");
        }
    }
}

#[test]
fn encoded_tiles_are_the_whole() {
    let (_, vae) = load();
    for ([height, width], latent_frames, sides) in TILED {
        let picture = noise(&[3, 1, 8 * height, 8 * width], 12);
        let video = noise(&[3, 4 * latent_frames - 3, 8 * height, 8 * width], 13);
        let of_picture = |side| values(&encode_picture(&vae, &picture, latent_frames, side).unwrap());
        let of_video = |side| values(&encode(&vae, &video, side).unwrap());
        let want = [of_picture(None), of_video(None)];
        for &side in sides {
            let got = [of_picture(Some(side)), of_video(Some(side))];
            assert!(got == want, "{height}x{width} in tiles of {side}");
        }
    }
    // Enough frames that all layers come to rest, in every tile.
    let picture = noise(&[3, 1, 24, 40], 14);
    let of = |side| values(&encode_picture(&vae, &picture, 12, side).unwrap());
    assert!(of(Some(2)) == of(None), "frames that repeat");
}

#[test]
fn conditioning_marks_the_first_latent_frame() {
    let b = Cpu::new();
    let latents = noise(&[16, 3, 2, 5], 8);
    let y = condition(&b, &latents, false).unwrap();
    assert_eq!(y.dims(), [20, 3, 2, 5]);
    let y = values(&y);
    for (i, v) in y[..4 * 30].iter().enumerate() {
        assert_eq!(*v, if i % 30 < 10 { 1.0 } else { 0.0 });
    }
    assert_eq!(y[4 * 30..], values(&latents));
}

#[test]
fn conditioning_marks_the_last_frame_of_the_last_latent_frame() {
    let b = Cpu::new();
    let latents = noise(&[16, 3, 2, 5], 8);
    let y = values(&condition(&b, &latents, true).unwrap());
    for (i, v) in y[..4 * 30].iter().enumerate() {
        let (channel, frame) = (i / 30, i % 30 / 10);
        let given = frame == 0 || (frame == 2 && channel == 3);
        assert_eq!(*v, if given { 1.0 } else { 0.0 }, "channel {channel}, latent frame {frame}");
    }
    assert_eq!(y[4 * 30..], values(&latents));
}

#[test]
fn a_last_picture_is_encoded_as_in_the_whole_video() {
    let (b, vae) = load();
    for (latent_frames, tile) in [(2, None), (3, None), (3, Some(2)), (4, None), (9, None), (21, Some(2))] {
        let [first, last] = [15, 16].map(|seed| noise(&[3, 1, 24, 40], seed));
        let between =
            b.upload(&vec![0.0; 3 * (4 * latent_frames - 5) * 24 * 40], &[3, 4 * latent_frames - 5, 24, 40]);
        let video = b.concat(&[&first, &between.unwrap(), &last], 1).unwrap();
        let whole = encode(&vae, &video, tile).unwrap();
        let footage = Footage::Picture { picture: &first, last: Some(&last), latent_frames };
        let short = vae.encode(&b, footage, tile, &Quiet, None).unwrap();
        assert!(values(&whole) == values(&short), "{latent_frames} latent frames in tiles of {tile:?}");
    }
    let (first, small) = (noise(&[3, 1, 24, 40], 15), noise(&[3, 1, 24, 32], 16));
    for (last, latent_frames) in [(&small, 3), (&first, 1)] {
        let footage = Footage::Picture { picture: &first, last: Some(last), latent_frames };
        let refused = vae.encode(&b, footage, None, &Quiet, None);
        assert!(matches!(refused, Err(Error::Setting(_))));
    }
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
        let refused = encode(&vae, &noise(&shape, 1), None);
        assert!(matches!(refused, Err(Error::Setting(_))), "{shape:?}");
    }
    let picture = noise(&[3, 1, 16, 16], 1);
    let refused = |picture: &Tensor, latent_frames| {
        matches!(encode_picture(&vae, picture, latent_frames, None), Err(Error::Setting(_)))
    };
    assert!(refused(&picture, 0) && refused(&noise(&[3, 5, 16, 16], 1), 2));
    let latents = noise(&[16, 3, 2, 2], 1);
    for tile in [None, Some(1)] {
        let footage = Footage::Picture { picture: &picture, last: None, latent_frames: 2 };
        assert!(matches!(vae.encode(&b, footage, tile, &Stop, None), Err(Error::Canceled)));
        let mut sink = |_| -> Result<()> { unreachable!("frames of a job that was cancelled") };
        assert!(matches!(vae.decode(&b, &latents, tile, &Stop, &mut sink, None), Err(Error::Canceled)));
    }
    let too_few = noise(&[15, 1, 2, 2], 1);
    let refused = vae.decode(&b, &too_few, None, &Quiet, &mut |_| Ok(()), None);
    assert!(matches!(refused, Err(Error::Setting(_))));
    let mut frames = 0;
    let mut sink = |_| {
        frames += 1;
        if frames == 2 { Err(Error::Canceled) } else { Ok(()) }
    };
    let stopped = vae.decode(&b, &latents, None, &Quiet, &mut sink, None);
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
