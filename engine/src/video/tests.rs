//! Tests with the real `ffmpeg`, checked with `ffprobe`, and with stand-ins for it that fail.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::*;

const WIDTH: u32 = 96;
const HEIGHT: u32 = 64;

fn options() -> VideoOptions {
    VideoOptions { width: WIDTH, height: HEIGHT, fps: 16, quality: 18, metadata: Some("{}".into()) }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Returns smooth colours that drift from frame to frame.
fn clip(frames: usize) -> Vec<u8> {
    let wave = |phase: f64| (127.5 + 100.0 * phase.sin()) as u8;
    let pixel = |f: usize, y: u32, x: u32| {
        let (f, y, x) = (f as f64 * 0.1, f64::from(y) * 0.05, f64::from(x) * 0.04);
        [wave(x + f), wave(y - f), wave(x + y + 0.5 * f)]
    };
    let rows = |f| (0..HEIGHT).flat_map(move |y| (0..WIDTH).flat_map(move |x| pixel(f, y, x)));
    (0..frames).flat_map(rows).collect()
}

/// Returns a script that takes the encoder's place.
fn stand_in(folder: &TempDir, script: &str) -> PathBuf {
    let path = folder.path().join("encoder");
    // Another process writes the script: if this one did, a process that a concurrent test forks could still have the
    // file open for writing, and the kernel does not run such a file.
    let status = Command::new("sh")
        .args(["-c", "printf '#!/bin/sh\n%s\n' \"$1\" >\"$2\" && chmod 755 \"$2\"", "sh", script])
        .arg(&path)
        .status();
    assert!(status.expect("a shell").success());
    path
}

/// Returns what a program prints.
fn output(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().expect("the package `ffmpeg` is installed");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn probe(path: &Path, args: &[&str]) -> serde_json::Value {
    let path = path.to_str().expect("plain letters");
    let args = [&["-v", "error", "-of", "json"], args, &[path]].concat();
    serde_json::from_slice(&output("ffprobe", &args)).expect("JSON")
}

/// Returns the decoded frames of a file.
fn decode(path: &Path, filter: &str, pixels: &str) -> Vec<u8> {
    let path = path.to_str().expect("plain letters");
    output("ffmpeg", &["-v", "error", "-i", path, "-vf", filter, "-f", "rawvideo", "-pix_fmt", pixels, "-"])
}

fn write(path: &Path, options: &VideoOptions, frames: &[u8]) -> Result<u64> {
    let mut writer = VideoWriter::create(path, options)?;
    writer.write(frames)?;
    writer.finish()
}

fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10()
}

#[test]
fn the_machine_has_an_encoder() -> Result<()> {
    check_encoder()
}

#[test]
fn a_file_is_what_players_expect() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("-a ü%d:b.mp4");
    let frames = clip(81);
    let mut writer = VideoWriter::create(&path, &options())?;
    // The VAE gives one frame, then four at a time.
    let (first, rest) = frames.split_at(frames.len() / 81);
    writer.write(first)?;
    for four in rest.chunks(4 * first.len()) {
        writer.write(four)?;
    }
    let bytes = writer.finish()?;
    assert_eq!(bytes, fs::metadata(&path).expect("written").len());

    let info = probe(&path, &["-count_frames", "-show_streams", "-show_format"]);
    assert_eq!(info["streams"].as_array().map(Vec::len), Some(1));
    let stream = &info["streams"][0];
    for (key, value) in [
        ("codec_name", "h264"),
        ("profile", "High"),
        ("pix_fmt", "yuv420p"),
        ("color_range", "tv"),
        ("color_space", "bt709"),
        ("color_primaries", "bt709"),
        ("color_transfer", "bt709"),
        ("r_frame_rate", "16/1"),
        ("avg_frame_rate", "16/1"),
        ("nb_read_frames", "81"),
        ("nb_frames", "81"),
    ] {
        assert_eq!(stream[key], value, "{key}");
    }
    assert_eq!(stream["width"], WIDTH);
    assert_eq!(stream["height"], HEIGHT);
    let duration: f64 = stream["duration"].as_str().expect("a text").parse().expect("a number");
    assert!((duration - 81.0 / 16.0).abs() < 1e-6, "{duration}");

    let frames = probe(&path, &["-show_entries", "frame=pts_time,key_frame"]);
    let frames = frames["frames"].as_array().expect("a list");
    for (i, frame) in frames.iter().enumerate() {
        let time: f64 = frame["pts_time"].as_str().expect("a text").parse().expect("a number");
        assert!((time - i as f64 / 16.0).abs() < 1e-6, "frame {i} at {time}");
    }
    assert!(frames.iter().filter(|frame| frame["key_frame"] == 1).count() >= 3);
    Ok(())
}

#[test]
fn decoded_frames_are_near_the_original() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    let frames = clip(17);
    write(&path, &options(), &frames)?;
    let got =
        decode(&path, "scale=in_color_matrix=bt709:in_range=tv:out_range=pc:flags=accurate_rnd", "rgb24");
    let quality = psnr(&frames, &got);
    assert!(quality > 35.0, "{quality} dB");
    Ok(())
}

#[test]
fn colours_are_converted_by_bt709() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    // By ITU-R BT.709: Y = 16 + 219 (0.2126 R + 0.7152 G + 0.0722 B), Cb = 128 + 224 (B - Y) / 1.8556,
    // Cr = 128 + 224 (R - Y) / 1.5748. By BT.601 red would have Y = 81.
    for (rgb, yuv) in [
        ([255, 0, 0], [63, 102, 240]),
        ([0, 255, 0], [173, 42, 26]),
        ([0, 0, 255], [32, 240, 118]),
        ([255, 255, 255], [235, 128, 128]),
        ([0, 0, 0], [16, 128, 128]),
    ] {
        write(&path, &VideoOptions { quality: 4, ..options() }, &rgb.repeat((WIDTH * HEIGHT) as usize))?;
        let planes = decode(&path, "null", "yuv420p");
        let pixels = (WIDTH * HEIGHT) as usize;
        for (at, want) in [(pixels / 2, yuv[0]), (pixels * 9 / 8, yuv[1]), (pixels * 11 / 8, yuv[2])] {
            assert!(planes[at].abs_diff(want) <= 1, "{rgb:?}: {} is not {want}", planes[at]);
        }
    }
    Ok(())
}

#[test]
fn quality_goes_from_lossless_to_small() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    let frames = clip(9);
    let bytes = |quality| write(&path, &VideoOptions { quality, ..options() }, &frames);
    let (worst, usual) = (bytes(51)?, bytes(18)?);
    let lossless = bytes(0)?;
    assert!(worst < usual && usual < lossless, "{worst}, {usual}, {lossless}");
    // Only the encoder is lossless: what ffmpeg's conversion makes of the frames must come back exactly.
    let raw = folder.path().join("a.rgb");
    fs::write(&raw, &frames).expect("writable");
    let size = format!("{WIDTH}x{HEIGHT}");
    let raw = raw.to_str().expect("plain letters");
    let filter = "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int,\
                  format=yuv420p";
    let input = ["-v", "error", "-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", &size, "-i", raw];
    let converted = output("ffmpeg", &[&input[..], &["-vf", filter, "-f", "rawvideo", "-"]].concat());
    assert_eq!(decode(&path, "null", "yuv420p"), converted);
    Ok(())
}

#[test]
fn metadata_comes_back_exactly() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    let prompt = "镜头=晃动;#色调\\n\n\r\n[STREAM]\ntitle=x\t'\"%{}\u{1f431} \\\\ ".repeat(300);
    assert!(prompt.len() > 16 * 1024);
    for text in [prompt.clone(), serde_json::json!({"prompt": prompt, "seed": i64::MAX}).to_string()] {
        write(&path, &VideoOptions { metadata: Some(text.clone()), ..options() }, &clip(1))?;
        let info = probe(&path, &["-show_entries", "format_tags:stream_tags:chapters"]);
        assert_eq!(info["format"]["tags"]["comment"], text);
        assert!(info["format"]["tags"].get("title").is_none());
        assert!(info["chapters"].as_array().is_none_or(Vec::is_empty));
    }
    Ok(())
}

#[test]
fn metadata_can_come_after_the_start_of_the_encoder() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    let later = VideoOptions { metadata: None, ..options() };
    // The second one is more than a pipe holds.
    for text in ["{}".to_owned(), "a; =\\b".repeat(40 << 10)] {
        let mut writer = VideoWriter::create(&path, &later)?;
        assert!(writer.write(&clip(1)).is_err(), "frames before the metadata");
        std::thread::sleep(std::time::Duration::from_millis(200));
        writer.describe(&text)?;
        assert!(writer.describe(&text).is_err(), "metadata twice");
        writer.write(&clip(5))?;
        writer.finish()?;
        let info = probe(&path, &["-show_entries", "format_tags"]);
        assert_eq!(info["format"]["tags"]["comment"], text);
    }
    // What cannot be written ends nothing but this video, and one without metadata leaves no file.
    let mut writer = VideoWriter::create(&path, &later)?;
    assert!(writer.describe("a\\").is_err());
    drop(writer);
    drop(VideoWriter::create(&path, &later)?);
    assert!(!path.exists());
    // An encoder that has ended is known by its last words.
    let program = stand_in(&folder, "echo nothing works >&2; exit 3");
    let mut writer = VideoWriter::with_program(program.as_os_str(), &path, &later)?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    writer.describe(&"x".repeat(300 << 10))?;
    let error = writer.write(&clip(100)).and_then(|()| writer.finish()).expect_err("it has ended");
    assert!(error.to_string().contains("it said: nothing works"), "{error}");
    assert!(!path.exists());
    Ok(())
}

#[test]
fn private_words_are_not_on_the_command_line() -> Result<()> {
    let folder = folder();
    let seen = folder.path().join("args");
    let script = format!("tr '\\0' ' ' </proc/$$/cmdline >'{}'; exec ffmpeg \"$@\"", seen.display());
    let program = stand_in(&folder, &script);
    let path = folder.path().join("secret-name.mp4");
    let secret = VideoOptions { metadata: Some("{\"prompt\": \"secret\"}".into()), ..options() };
    let mut writer = VideoWriter::with_program(program.as_os_str(), &path, &secret)?;
    writer.write(&clip(1))?;
    writer.finish()?;
    let seen = fs::read_to_string(seen).expect("the stand-in wrote it");
    assert!(seen.contains("libx264") && !seen.contains("secret"), "{seen}");
    Ok(())
}

#[test]
fn an_existing_file_is_replaced_and_a_link_is_not_followed() -> Result<()> {
    let folder = folder();
    let (path, other) = (folder.path().join("a.mp4"), folder.path().join("other"));
    fs::write(&other, "precious").expect("writable");
    std::os::unix::fs::symlink(&other, &path).expect("writable");
    write(&path, &options(), &clip(1))?;
    write(&path, &options(), &clip(1))?;
    assert_eq!(fs::read(&other).expect("readable"), b"precious");
    assert!(fs::symlink_metadata(&path).expect("written").is_file());
    Ok(())
}

#[test]
fn an_unfinished_video_leaves_nothing() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    let mut writer = VideoWriter::create(&path, &options())?;
    writer.write(&clip(5))?;
    assert!(path.exists());
    drop(writer);
    assert!(!path.exists());

    assert!(VideoWriter::create(&path, &options())?.finish().is_err(), "no frames");
    assert!(!path.exists());
    Ok(())
}

#[test]
fn an_encoder_that_hangs_does_not_hold_the_abort_up() -> Result<()> {
    let folder = folder();
    let program = stand_in(&folder, "exec sleep 1000");
    let path = folder.path().join("a.mp4");
    let mut writer = VideoWriter::with_program(program.as_os_str(), &path, &options())?;
    // These are more frames than the pipe holds, so that the thread is caught in a write.
    writer.write(&clip(100))?;
    drop(writer);
    assert!(!path.exists());
    Ok(())
}

/// The next test runs this one in a process of its own, and then kills that process.
#[test]
#[ignore = "waits to be killed"]
fn hold_an_encoder() -> Result<()> {
    let Some(folder) = std::env::var_os("ANIMD_TEST_FOLDER").map(PathBuf::from) else { return Ok(()) };
    let (program, path) = (folder.join("encoder"), folder.join("a.mp4"));
    let _writer = VideoWriter::with_program(program.as_os_str(), &path, &options())?;
    std::thread::sleep(std::time::Duration::from_secs(1000));
    Ok(())
}

#[test]
fn the_encoder_does_not_outlive_a_killed_engine() {
    let folder = folder();
    let number = folder.path().join("pid");
    let script = format!("echo $$ >'{0}.new'; mv '{0}.new' '{0}'; exec sleep 1000", number.display());
    stand_in(&folder, &script);
    let mut engine = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "video::tests::hold_an_encoder", "--ignored"])
        .env("ANIMD_TEST_FOLDER", folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("this test again");
    let wait_for = |what: &str, done: &dyn Fn() -> bool| {
        for _ in 0..600 {
            if done() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("waited in vain for {what}");
    };
    wait_for("the encoder", &|| number.exists());
    let number = fs::read_to_string(number).expect("readable");
    let stat = PathBuf::from(format!("/proc/{}/stat", number.trim()));
    assert!(stat.exists());
    engine.kill().expect("still running");
    engine.wait().expect("our child");
    // The encoder is gone, or is dead and waits to be reaped.
    wait_for("the encoder's end", &|| {
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z ")) || !stat.exists()
    });
}

/// Returns the error of a video whose encoder is `script`, and checks that no file is left.
fn failure(script: &str) -> String {
    let folder = folder();
    let program = stand_in(&folder, script);
    let path = folder.path().join("a.mp4");
    let attempt = || -> Result<u64> {
        let mut writer = VideoWriter::with_program(program.as_os_str(), &path, &options())?;
        for _ in 0..20 {
            writer.write(&clip(20))?;
        }
        writer.finish()
    };
    let error = attempt().expect_err("an encoder that fails");
    assert_eq!(error.code().name(), "output", "{error}");
    assert!(!path.exists());
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn an_encoder_that_fails_is_quoted() {
    let error = failure("echo one >&2; echo >&2; echo two >&2; echo three >&2; echo four >&2; exit 3");
    assert!(error.contains("exit status 3") && error.ends_with("it said: two; three; four"), "{error}");
    let error = failure("kill -9 $$");
    assert!(error.contains("was killed by signal 9") && error.contains("said nothing"), "{error}");
    // One script succeeds without reading, the other without writing.
    let error = failure("exit 0");
    assert!(error.contains("left no whole video"), "{error}");
    let error = failure("cat >/dev/null");
    assert!(error.contains("left no whole video"), "{error}");
}

#[test]
fn an_encoder_without_x264_is_named() {
    let unknown = "shift $(($# - 1)); exec ffmpeg -v error -f rawvideo -pixel_format rgb24 -video_size 96x64 -i pipe:0 \
                   -c:v libx264x -f null -";
    // The first name is one that this ffmpeg never knows, the second one that a build without it complains of.
    assert!(failure(unknown).contains("libx264x"));
    let error = failure("echo \"Unknown encoder 'libx264'\" >&2; exit 1");
    assert!(error.contains("no encoder `libx264`") && error.contains("install"), "{error}");

    let folder = folder();
    let program = stand_in(&folder, "echo \"Codec 'libx264' is not recognized by FFmpeg.\" >&2");
    let error = ffmpeg::check(program.as_os_str()).expect_err("no libx264").to_string();
    assert!(error.contains("no encoder `libx264`"), "{error}");
}

#[test]
fn a_missing_encoder_is_named() {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    let program = OsStr::new("animd-no-such-program");
    let errors = [
        VideoWriter::with_program(program, &path, &options()).err().expect("no such program"),
        ffmpeg::check(program).expect_err("no such program"),
    ];
    for error in errors {
        assert_eq!(error.code().name(), "output");
        assert!(error.to_string().contains("install the package `ffmpeg`"), "{error}");
    }
    assert!(!path.exists());
}

#[test]
fn a_full_disk_is_a_sentence() {
    // The kernel refuses to let the file grow, in the middle and at its end.
    for kilobytes in [1, 2, 4, 8] {
        let error = failure(&format!("ulimit -f {kilobytes}; trap '' XFSZ; exec ffmpeg \"$@\""));
        assert!(error.contains("File too large"), "{error}");
    }
    let error = failure("echo 'av_interleaved_write_frame(): No space left on device' >&2; exit 1");
    assert!(error.contains("no space left on the disk"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let error = VideoWriter::create(Path::new("/proc/a.mp4"), &options())
        .err()
        .expect("nothing can be written there");
    assert_eq!(error.code().name(), "file");
    assert!(error.to_string().contains("`/proc/a.mp4`"), "{error}");
}

#[test]
fn nonsense_is_refused() -> Result<()> {
    let folder = folder();
    let path = folder.path().join("a.mp4");
    for options in [
        VideoOptions { width: 95, ..options() },
        VideoOptions { height: 0, ..options() },
        VideoOptions { fps: 0, ..options() },
        VideoOptions { quality: 52, ..options() },
        VideoOptions { metadata: Some("\0".into()), ..options() },
    ] {
        assert!(VideoWriter::create(&path, &options).is_err());
        assert!(!path.exists());
    }
    let mut writer = VideoWriter::create(&path, &options())?;
    assert!(writer.write(&clip(1)[1..]).is_err());
    Ok(())
}
