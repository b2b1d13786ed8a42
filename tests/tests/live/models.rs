//! Jobs of several models, by sidecar and over the bus: the engine is replaced between them, and a model that cannot be used
//! fails its own jobs only.

use std::fs;

use crate::harness::{House, PICTURE, text};

/// Puts a picture unlike any other into the inbox, with a model's name beside it if it is to have one.
fn put(house: &House, name: &str, model: Option<&str>) {
    if let Some(model) = model {
        fs::write(house.path(&format!("inbox/{name}.toml")), format!("model = \"{model}\"\n")).unwrap();
    }
    fs::write(house.path(&format!("inbox/{name}.png")), [PICTURE, name.as_bytes()].concat()).unwrap();
}

/// Returns the model and the state of a job.
fn fate(house: &House, name: &str) -> String {
    house.text(&format!(
        "SELECT coalesce(model, '') || ' ' || state FROM job WHERE CAST(name AS TEXT) = '{name}.png'"
    ))
}

#[test]
fn each_job_has_its_model_and_a_broken_one_fails_its_own_jobs_only() {
    let mut house = House::new("[defaults]\nsteps = 4\n");
    for model in ["small", "large", "broken"] {
        fs::create_dir_all(house.path("models").join(model)).unwrap();
    }
    house.set_env("SIM_START", "model=broken");
    let lives = house.path("lives");
    house.set_env("SIM_LIVES", lives.to_str().unwrap());
    house.start();
    house.until("the first engine is there", |house| house.json(&["status"])["state"] == "idle");
    house.json(&["pause"]);
    // One after the other, so that the queue has this order.
    let mut count = 0;
    let mut queued = |house: &House| {
        count += 1;
        house.until("it is queued", |house| house.number("SELECT count(*) FROM job") == Some(count));
    };
    put(&house, "configured", None);
    queued(&house);
    put(&house, "by-sidecar", Some("small"));
    queued(&house);
    let picture = |name: &str| {
        let path = house.path(&format!("{name}.png"));
        fs::write(&path, [PICTURE, name.as_bytes()].concat()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    house.json(&["submit", &picture("by-bus"), "--model", "large"]);
    queued(&house);
    house.json(&["submit", &picture("same-by-bus"), "--model", "large"]);
    queued(&house);
    put(&house, "bad", Some("broken"));
    queued(&house);
    house.json(&["submit", &picture("bad-by-bus"), "--model", "broken"]);
    queued(&house);
    put(&house, "after", Some("small"));
    queued(&house);
    put(&house, "again", None);
    queued(&house);
    // A name that nobody knows is refused at once, in the same words on both ways.
    let refused = house.animctl(&["submit", &picture("typo-by-bus"), "--model", "smal"]);
    let said = "no model is called `smal`; did you mean `small`?";
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    put(&house, "typo", Some("smal"));
    house.until_ended(1);
    let note = fs::read_to_string(house.path("inbox/failed/typo.png.error.txt")).unwrap();
    assert!(note.contains(said), "{note}");

    house.json(&["resume"]);
    house.until_ended(9);
    for (name, expected) in [
        ("configured", "simulated done"),
        ("by-sidecar", "small done"),
        ("by-bus", "large done"),
        ("same-by-bus", "large done"),
        ("bad", " failed"),
        ("bad-by-bus", " failed"),
        ("after", "small done"),
        ("again", "simulated done"),
    ] {
        assert_eq!(fate(&house, name), expected, "{name}");
    }
    let why = "its model `broken` cannot be used: the model folder is empty";
    assert_eq!(house.number(&format!("SELECT count(*) FROM job WHERE error_text = '{why}'")), Some(2));
    assert_eq!(house.number("SELECT count(*) FROM job WHERE error_code = 'model'"), Some(2));
    assert_eq!(fs::read_to_string(house.path("inbox/failed/bad.png.error.txt")).unwrap().trim_end(), why);
    assert_eq!(house.number("SELECT sum(crashes) FROM job"), Some(0));
    // The configured model, small, large for both of its jobs, broken for each of its own, small, the configured one.
    assert_eq!(fs::metadata(lives).unwrap().len(), 7);
}
