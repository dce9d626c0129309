//! `ringmail info` and how settings are refused.

mod support;

use support::{assert_fails, ringmail, run, stdout};

#[test]
fn info_names_the_providers_and_the_origin_of_each_setting() {
    let output = ringmail()
        .args(["info", "--json", "--faults", "loss=1%"])
        .env("RINGMAIL_PROVIDER", "loopback")
        .output()
        .unwrap();
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = report["providers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|provider| provider["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"loopback"), "{names:?}");
    let origin = |name: &str| {
        let rows = report["settings"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        (
            row["value"].as_str().unwrap().to_owned(),
            row["origin"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(
        origin("provider"),
        ("loopback".to_owned(), "environment".to_owned())
    );
    assert_eq!(
        origin("faults"),
        ("loss=1%".to_owned(), "program".to_owned())
    );
    assert_eq!(origin("capture").1, "default");
}

#[test]
fn info_for_humans_says_what_a_device_can_do() {
    let text = stdout(&run(["info"]));
    for part in ["loopback/", "reaches", "operations", "settings"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
}

#[test]
fn info_says_why_no_device_is_used() {
    let text = stdout(&run(["info", "--provider", "carrier-pigeon"]));
    let why = "commands find no device to use: no provider is called carrier-pigeon: there are ";
    assert!(text.contains(why), "{text}");
}

#[test]
fn a_setting_that_does_not_exist_is_named() {
    assert_fails(
        &run(["info", "--set", "softroce.colour=red"]),
        1,
        "there is no setting called softroce.colour",
    );
    assert_eq!(run(["info", "--set", "nonsense"]).status.code(), Some(2));
    assert_eq!(run(["juggle"]).status.code(), Some(2));
}
