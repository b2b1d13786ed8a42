use std::fs;

use animd_protocol::request::{Sampler, Size};

use super::*;
use crate::keys;

/// Loads the configuration from a folder with `text` as its `animd.toml` and with the files of `conf.d`.
fn load(text: &str, drop_ins: &[(&str, &str)], vars: &[(&str, &str)]) -> Result<Loaded> {
    load_with(text, drop_ins, vars, Vec::new())
}

fn load_with(
    text: &str,
    drop_ins: &[(&str, &str)],
    vars: &[(&str, &str)],
    options: Vec<Given>,
) -> Result<Loaded> {
    let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
    let write = |name: String, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).map_err(Error::file("write", &path)).map(|()| path)
    };
    fs::create_dir(dir.path().join(DROP_INS)).map_err(Error::file("make", DROP_INS))?;
    for (name, text) in drop_ins {
        write(format!("{DROP_INS}/{name}"), text)?;
    }
    let file = write("animd.toml".into(), text)?;
    let vars = vars.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect();
    Sources { file: Some(file), user: false, options, vars }.load()
}

/// Returns the error without the folder, which has another name each time.
fn error(text: &str, drop_ins: &[(&str, &str)], vars: &[(&str, &str)]) -> String {
    let e = load(text, drop_ins, vars).expect_err("refused").to_string();
    let words = e.split(' ').map(|word| match word.find("/animd.toml").or_else(|| word.find("/conf.d")) {
        Some(at) if word.starts_with('/') => &word[at + 1..],
        Some(at) if word.starts_with("`/") => &word[at + 1..],
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn later_layers_win_and_the_rest_stays() -> Result<()> {
    let loaded = load_with(
        "[queue]\nattempts = 5\nfree_mib = 7\nper_user = 1\ntotal = 1\n[defaults]\nsteps = 4\n[profile]\ngpu = 1\n",
        &[
            ("20-b.toml", "queue.per_user = 3\n"),
            ("10-a.toml", "queue.per_user = 2\nqueue.total = 2\n"),
            (".hidden.toml", "nonsense"),
            ("note.txt", "nonsense"),
        ],
        &[
            ("ANIMD_QUEUE_FREE_MIB", "9"),
            ("ANIMD_MODEL_PATH", "/m"),
            ("HOME", "/home/a"),
            ("ANIMD_DEFAULTS_SIZE", "720p"),
            ("ANIMD_POWER_INHIBIT_SLEEP", "false"),
        ],
        vec![Given { option: "--model", section: "model", key: "path", value: "/n".into() }],
    )?;
    let config = &loaded.config;
    assert_eq!((config.queue.attempts, config.queue.free_mib), (5, 9));
    assert_eq!((config.queue.per_user, config.queue.total), (3, 2));
    assert_eq!((config.model.path.as_deref(), config.profile.gpu.as_str()), (Some(Path::new("/n")), "1"));
    assert_eq!((config.defaults.steps, config.defaults.prompt.as_deref()), (Some(4), Some(NEUTRAL_PROMPT)));
    assert_eq!((config.defaults.size, config.power.inhibit_sleep), (Some(Size::P720), false));
    assert_eq!(config.folders, Folders::default());
    let of = |key| loaded.origins.of(key).to_string();
    assert!(of("queue.attempts").ends_with("animd.toml:2:12"), "{}", of("queue.attempts"));
    assert!(of("queue.per_user").ends_with("conf.d/20-b.toml:1:18"), "{}", of("queue.per_user"));
    assert_eq!(of("queue.free_mib"), "variable ANIMD_QUEUE_FREE_MIB");
    assert_eq!((of("model.path"), of("log.level")), ("option --model".into(), "built in".into()));
    let names: Vec<_> = loaded.files.iter().filter_map(|path| path.file_name()).collect();
    assert_eq!(names, ["animd.toml", "10-a.toml", "20-b.toml"]);
    Ok(())
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "[queue]\natempts = 5\nfree_mib = -1\ntotal = 0\n[defaults]\nseed = -1\nsteps = 0\n[queu]\nattempts = 1\n\
                [folders]\ninbox = \"~/in\"\n";
    let drop_ins = [("a.toml", "[inbox]\nstable_seconds = 9999\n[power]\ninhibit_sleep = \"no\"")];
    let e = error(text, &drop_ins, &[("ANIMD_QUEUE_PER_USER", "x")]);
    let lines: Vec<&str> = e.lines().collect();
    for expected in [
        "animd.toml:2:1: unknown key `atempts`; did you mean `attempts`?",
        "animd.toml:3:12: queue.free_mib must be a whole number, 0 or more, not `-1`",
        "animd.toml:6:8: `seed` must be a whole number from 0 to ",
        "animd.toml:7:9: `steps` must be a whole number from 1 to 1000, not 0",
        "animd.toml:8:2: unknown key `queu`; did you mean `queue`?",
        "animd.toml:11:9: folders.inbox `~/in`: `~` is nobody's home here",
        "conf.d/a.toml:4:17: power.inhibit_sleep must be true or false, not \"no\"",
        "variable ANIMD_QUEUE_PER_USER: queue.per_user must be a whole number, 0 or more, not \"x\"",
        "animd.toml:4:9: queue.total 0 is not from 1 to 10000000",
        "conf.d/a.toml:2:18: inbox.stable_seconds 9999 is not from 0 to 3600",
    ] {
        assert!(e.contains(expected), "{expected}\n{e}");
    }
    assert_eq!(lines.len(), 10, "{e}");
}

#[test]
fn a_home_is_known_to_a_users_own_service() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
    let file = dir.path().join("animd.toml");
    fs::write(&file, "[model]\npath = \"~/models/wan\"\n").map_err(Error::file("write", &file))?;
    let vars = [("HOME", "/home/ann"), ("ANIMD_MODEL_DIT", "~/models/dit")];
    let vars = vars.map(|(name, value)| (name.into(), value.into())).into();
    let config = Sources { file: Some(file), user: true, options: Vec::new(), vars }.load()?.config;
    assert_eq!(config.model.path.as_deref(), Some(Path::new("/home/ann/models/wan")));
    assert_eq!(config.model.dit.as_deref(), Some(Path::new("/home/ann/models/dit")));
    Ok(())
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, expected) in [
        ("[queue]\n\natempts = 5\n", "animd.toml:3:1: unknown key `atempts`; did you mean `attempts`?"),
        ("[queu]\nattempts = 5\n", "animd.toml:1:2: unknown key `queu`; did you mean `queue`?"),
        ("attempts = 5\n", "animd.toml:1:1: unknown key `attempts` here; it belongs in [queue]"),
        (
            "[queue]\nattempts = \"x\"\n",
            "animd.toml:2:12: queue.attempts must be a whole number, 0 or more, not \"x\"",
        ),
        ("[power]\ninhibit_sleep = 1", "animd.toml:2:17: power.inhibit_sleep must be true or false, not `1`"),
        ("queue = 3", "animd.toml:1:9: queue must be a section, not `3`"),
        ("[queue]\nattempts = 0", "animd.toml:2:12: queue.attempts 0 is not from 1 to 100"),
        ("[inbox]\nstable_seconds = nan", "animd.toml:2:18: inbox.stable_seconds NaN is not from 0 to 3600"),
        ("[log]\nlevel = \"loud=x=y\"", "animd.toml:2:9: log.level `loud=x=y`"),
        (
            "[defaults]\nseed = 1\nframes = 80\n",
            "animd.toml:3:10: `frames` must be 4n+1, up to 4093; the nearest to 80 is 81",
        ),
        (
            "[defaults]\nsampler = \"distil\"\n",
            "animd.toml:2:11: `sampler` must be `unipc`, `distill` or `distill-renoise`, not `distil`; did you mean `distill`?",
        ),
        (
            "[defaults]\nstep_cache = \"teacache\"\nsampler = \"distill\"",
            "animd.toml:2:14: [defaults]: `step_cache` saves nothing",
        ),
        (
            "[folders]\ninbox = \"~/in\"",
            "animd.toml:2:9: folders.inbox `~/in`: `~` is nobody's home here; write the whole path",
        ),
        ("[folders]\ninbox = \"\"", "animd.toml:2:9: folders.inbox is empty"),
        (
            "[folders]\noutbox = \"/a\"\nstate = \"/a/.\"",
            "animd.toml:3:9: `/a` (folders.state) and `/a` (folders.outbox, ",
        ),
        ("[[watch]]\noutbox = \"/a\"", "animd.toml:1:1: `path` is missing, and must be given"),
        (
            "[[watch]]\npath = \"/a\"\npol_seconds = 5",
            "animd.toml:3:1: unknown key `pol_seconds`; did you mean `poll",
        ),
        (
            "[[watch]]\npath = \"/a\"\npoll_seconds = 0",
            "animd.toml:3:16: watch.poll_seconds 0 is not from 0.1 to 3600",
        ),
        (
            "[[watch]]\npath = \"/var/lib/animd\"",
            "animd.toml:2:8: `/var/lib/animd/inbox` (folders.inbox) lies in the watched folder `/var/lib/animd` (watch.path)",
        ),
        (
            "[[watch]]\npath = \"/a\"\noutbox = \"/a/\"",
            "animd.toml:3:10: the watched folder `/a` (watch.path, animd.toml:2:8) is where videos appear, by `/a` (watch.outbox)",
        ),
        ("[queue\n", "animd.toml:1:7: "),
    ] {
        let e = error(text, &[], &[]);
        assert!(e.starts_with(expected), "{text:?}: {e}");
    }
    let e = error("", &[], &[("ANIMD_QUEU_FREE_MIB", "9")]);
    assert_eq!(e, "unknown variable ANIMD_QUEU_FREE_MIB; did you mean ANIMD_QUEUE_...?");
    let e = error("", &[], &[("ANIMD_QUEUE_FRE_MIB", "9")]);
    assert_eq!(e, "variable ANIMD_QUEUE_FRE_MIB: unknown key `fre_mib`; did you mean `free_mib`?");
    let e = error("", &[], &[("ANIMD_QUEUE_TOTAL", "many")]);
    assert_eq!(e, "variable ANIMD_QUEUE_TOTAL: queue.total must be a whole number, 0 or more, not \"many\"");
    let e = error("", &[], &[("ANIMD_QUEUE_TOTAL", "0")]);
    assert_eq!(e, "variable ANIMD_QUEUE_TOTAL: queue.total 0 is not from 1 to 10000000");
    assert!(error("", &[], &[("ANIMD_WATCH_PATH", "/a")]).contains("cannot be variables"));
    let sources = Sources { file: Some("/nowhere/animd.toml".into()), ..Sources::default() };
    assert!(sources.load().is_err_and(|e| e.to_string().contains("/nowhere/animd.toml")));
}

#[test]
fn a_wrong_option_is_named() {
    let options = vec![Given { option: "--inbox", section: "folders", key: "inbox", value: "x".into() }];
    let e = load_with("", &[], &[], options).expect_err("refused").to_string();
    assert_eq!(e, "option --inbox: folders.inbox `x` is not an absolute path");
}

#[test]
fn watched_folders_of_all_files_add_up() -> Result<()> {
    let loaded = load(
        "[[watch]]\npath = \"/a\"\n[[watch]]\npath = \"/b\"\nstable_seconds = 1",
        &[("c.toml", "[[watch]]\npath = \"sub\"\noutbox = \"/out\"\n")],
        &[],
    )?;
    let [a, b, c] = &loaded.config.watch[..] else { panic!("{:?}", loaded.config.watch) };
    assert_eq!(
        (a.path.as_path(), b.path.as_path(), b.stable_seconds),
        (Path::new("/a"), Path::new("/b"), Some(1.0))
    );
    assert!(c.path.is_absolute() && c.path.ends_with("conf.d/sub"), "{:?}", c.path);
    assert!(loaded.origins.of("watch.2.path").to_string().ends_with("c.toml:2:8"));
    for (path, middle) in [
        ("/a/", "`/a` (watch.path) is watched already, as `/a` (watch.path, animd.toml:2:8)"),
        ("/a/b", "`/a/b` (watch.path) lies in the watched folder `/a` (watch.path, animd.toml:2:8)"),
    ] {
        let text = format!("\n\n[[watch]]\npath = \"{path}\"");
        let e = error("[[watch]]\npath = \"/a\"", &[("c.toml", &text)], &[]);
        assert!(e.starts_with(&format!("conf.d/c.toml:4:8: {middle}")), "{e}");
    }
    Ok(())
}

#[test]
fn a_user_has_folders_of_their_own() -> Result<()> {
    let vars = vec![("HOME".into(), "/home/a".into())];
    let loaded = Sources { user: true, vars, ..Sources::default() }.load()?;
    assert_eq!(loaded.config.folders.inbox, Path::new("/home/a/Videos/animd/inbox"));
    assert_eq!(loaded.config.folders.state, Path::new("/home/a/.local/state/animd"));
    Ok(())
}

#[test]
fn what_is_printed_can_be_read_again() -> Result<()> {
    let text =
        "[queue]\nattempts = 5\n[[watch]]\npath = \"/a # b\"\n[[watch]]\npath = \"/c\"\npoll_seconds = 1\n";
    let loaded = load(text, &[], &[])?;
    for origins in [false, true] {
        let printed = loaded.print(origins);
        // Where models have names follows from the place of the file.
        let models = loaded.config.models.clone();
        let read = Config { models, ..from_text(Path::new("/animd.toml"), &printed)?.config };
        assert_eq!(read, loaded.config, "{printed}");
    }
    assert!(loaded.print(true).contains("attempts = 5 # /"), "{}", loaded.print(true));
    Ok(())
}

#[test]
fn the_shipped_file_is_the_defaults() -> Result<()> {
    // Every key is there, commented out; without the comment signs, the file equals the built-in defaults.
    let text: String = reference::SHIPPED
        .lines()
        .map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ') && !l.is_empty()).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut read: Config = toml::from_str(&text)
        .map_err(|e| Error::Config(keys::explain(Path::new("animd.toml"), &text, &e)))?;
    assert!(read.model.path.take().is_some());
    assert!(read.lora.folders.take().is_some());
    assert!(read.model.dit.take().is_some() && read.engine.program.take().is_some());
    assert!(read.metrics.textfile.take().is_some());
    let [watch] = take(&mut read.watch).try_into().expect("one example");
    assert!(watch.outbox.is_some() && watch.stable_seconds.is_some() && watch.poll_seconds.is_some());
    let mut defaults = take(&mut read.defaults);
    assert_eq!(read, Config::default());

    // These have no value of their own where a job does not set them.
    let built_in = Settings {
        prompt: Some(NEUTRAL_PROMPT.into()),
        seed: Some(42),
        steps_high: Some(15),
        steps_base: Some(2),
        sampler_low: Some(Sampler::Unipc),
        shift_low: Some(5.0),
        guidance_low: Some(3.5),
        guidance_base: Some(3.5),
        ..Settings::default()
    };
    let example = defaults.model.take();
    assert_eq!(defaults.clone().resolve(|| 0)?, built_in.resolve(|| 0)?);
    defaults.model = example;
    let table = |config: &Config| Table::try_from(config).map_err(|e| Error::Config(e.to_string()));
    assert_eq!(
        Table::try_from(&defaults).map_or(0, |table| table.len()),
        keys::SETTINGS.len(),
        "every setting is there"
    );

    // The other way round: the file lacks nothing that the types have.
    for (section, values) in table(&Config::default())? {
        for (key, _) in values.as_table().into_iter().flatten() {
            let there = reference::reference().iter().any(|doc| doc.section == section && doc.key == key);
            assert!(there, "{section}.{key} is missing");
        }
    }
    // The file as shipped sets nothing.
    let shipped = from_text(Path::new("/animd.toml"), reference::SHIPPED)?;
    assert_eq!(shipped.origins, Origins::default());
    Ok(())
}

#[test]
fn a_watched_folder_without_its_path_hides_no_other_mistake() {
    let text =
        "[[watch]]\noutbox = \"/a\"\n[[watch]]\npath = \"/b\"\npoll_seconds = 0.0\n[queue]\nattempts = 0\n";
    let told = error(text, &[], &[]);
    let lines: Vec<&str> =
        told.lines().map(|line| line.split_once("animd.toml:").map_or(line, |(_, rest)| rest)).collect();
    let expected = [
        "1:1: `path` is missing, and must be given",
        "7:12: queue.attempts 0 is not from 1 to 100",
        "5:16: watch.poll_seconds 0 is not from 0.1 to 3600",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn loras_come_from_the_folders_that_are_allowed() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
    let root = dir.path();
    let make = |path: &Path| fs::create_dir_all(path).map_err(Error::file("make", path));
    let (model, file) = (root.join("wan"), root.join("config/animd.toml"));
    make(&model.join("loras"))?;
    make(&root.join("config"))?;
    let read = |text: &str, user: bool| -> Result<Config> {
        fs::write(&file, text).map_err(Error::file("write", &file))?;
        let vars = vec![("HOME".into(), "/home/ann".into())];
        Ok(Sources { file: Some(file.clone()), user, options: Vec::new(), vars }.load()?.config)
    };
    let configured = format!("[model]\npath = {model:?}\n");
    let own = model.join("loras");
    assert_eq!(read(&configured, false)?.lora_places(None), [own.clone(), "/var/lib/animd/loras".into()]);
    let of_user = [own, "/home/ann/.local/share/animd/loras".into()];
    assert_eq!(read(&configured, true)?.lora_places(None), of_user);
    let settings = |text: &str| -> Result<Settings> {
        let lora = Some(animd_protocol::lora::parse(text).map_err(|e| Error::Config(e.to_string()))?);
        Ok(Settings { lora, ..Settings::default() })
    };
    // Configured ones stand in the place of all others.
    let named = read(&format!("{configured}[lora]\nfolders = [\"~/loras\", \"more\"]\n"), true)?;
    assert_eq!(named.lora_places(None), [PathBuf::from("/home/ann/loras"), root.join("config/more")]);
    assert!(read(&format!("{configured}[lora]\nfolders = []\n"), false)?.lora_places(None).is_empty());
    // A list takes the place of a longer one below it, and so does a text.
    let text = "[lora]\nfolders = [\"/a\", \"/b\"]\n[defaults]\nlora = [\"a\", \"b\"]\n";
    let over = [("1.toml", "[lora]\nfolders = [\"/c\"]\n[defaults]\nlora = \"c\"\n")];
    let merged = load(text, &over, &[])?.config;
    assert_eq!(merged.lora.folders, Some(vec!["/c".into()]));
    assert_eq!(merged.defaults.lora, settings("c")?.lora);
    // What is added counts with all that is added elsewhere, and with the folders.
    let text = "[lora]\nfolders = [\"/a\"]\nadded = [\"/one.safetensors\"]\n";
    let over = [("1.toml", "[lora]\nadded = [\"/two\", \"/three\"]\n"), ("2.toml", "[lora]\nadded = []\n")];
    let added = ["/one.safetensors", "/two", "/three", "/a"].map(PathBuf::from);
    assert_eq!(load(text, &over, &[])?.config.lora_places(None), added);

    // What a file beside a LoRA says goes before what the model's file says.
    let write = |path: &Path, text: &str| fs::write(path, text).map_err(Error::file("write", path));
    write(&model.join("loras/fast.safetensors"), "")?;
    write(&model.join("loras/fast.toml"), "[sampling]\ndistilled = true\nsteps = 6\n")?;
    let config = read(&configured, false)?;
    let fast = config.with_models(settings("fast:0.5")?);
    assert_eq!((fast.sampler, fast.steps), (Some(Sampler::Distill), Some(6)));
    let own = Settings { sampler: Some(Sampler::Unipc), ..settings("fast")? };
    assert_eq!(config.with_models(own.clone()), own);
    assert_eq!(config.with_models(settings("other")?), settings("other")?);
    Ok(())
}
