use super::*;

#[test]
fn every_part_of_every_family_has_a_place_and_no_other_has() {
    use ModelPart::{Clip, Dit, HighNoise, LowNoise, Text, Tokenizer, Vae};
    for family in Family::ALL {
        for part in [Dit, HighNoise, LowNoise, Text, Clip, Vae, Tokenizer] {
            let has = family.parts().contains(&part);
            assert_eq!(source(family, part).is_some(), has, "{} {}", family.name(), part.key());
            for source in sources(family, part) {
                assert_eq!(source.repository.split('/').count(), 2, "{source:?}");
                assert!(!source.files.is_empty() && source.files.iter().all(|file| !file.starts_with('/')));
                assert_eq!(source.bytes.is_none(), part == Tokenizer, "{source:?}");
                assert_eq!(source.carries_tokenizer, part == Text && source.kind != Kind::Official);
            }
            let mut kinds: Vec<_> = sources(family, part).map(|source| source.kind.name()).collect();
            let all = kinds.len();
            kinds.sort_unstable();
            kinds.dedup();
            assert_eq!(kinds.len(), all, "one place for each kind");
        }
    }
}

/// The shards of one transformer are numbered from 1 to as many as there are, and no other model's are among them.
#[test]
fn shards_are_all_named() {
    for family in Family::ALL {
        for part in family.parts() {
            for source in sources(family, *part).filter(|source| source.files.len() > 1) {
                let shards: Vec<_> = source.files.iter().filter(|file| file.contains("-of-")).collect();
                for (index, shard) in shards.iter().enumerate() {
                    let number = format!("-{:05}-of-{:05}.safetensors", index + 1, shards.len());
                    assert!(shard.ends_with(&number), "{shard}");
                }
                let folders: Vec<_> = source.files.iter().map(|file| file.rsplit_once('/')).collect();
                assert!(folders.iter().all(|f| f.map(|f| f.0) == folders[0].map(|f| f.0)), "{source:?}");
            }
        }
    }
}

#[test]
fn a_set_is_complete_and_has_one_tokenizer() {
    let parts = |family, kind| set(family, kind).iter().map(|(part, _)| part.key()).collect::<Vec<_>>();
    assert_eq!(parts(Family::Wan21I2v480p, Kind::Comfy), ["dit", "text", "clip", "vae"]);
    assert_eq!(
        parts(Family::Wan21I2v480p, Kind::Official),
        ["dit", "text", "clip", "vae", "tokenizer"],
        "the released text encoder carries none"
    );
    assert_eq!(parts(Family::Wan22I2vA14b, Kind::Distilled), ["high_noise", "low_noise", "text", "vae"]);
    // What a kind has not is taken from the recommended place.
    let distilled = set(Family::Wan21I2v720p, Kind::Distilled);
    let kinds: Vec<_> = distilled.iter().map(|(_, source)| source.kind).collect();
    assert_eq!(kinds, [Kind::Distilled, Kind::Comfy, Kind::Comfy, Kind::Comfy]);
    for family in Family::ALL {
        let bytes = |kind| set(family, kind).iter().filter_map(|(_, source)| source.bytes).sum::<u64>();
        assert!(bytes(Kind::GgufQ4) < bytes(Kind::Comfy) && bytes(Kind::Comfy) < bytes(Kind::Official));
    }
}

#[test]
fn commands_fetch_each_file_once() {
    let vae = source(Family::Wan22I2vA14b, ModelPart::Vae).expect("it has a VAE");
    assert_eq!(
        vae.command(Path::new("/models")),
        "hf download Comfy-Org/Wan_2.1_ComfyUI_repackaged split_files/vae/wan_2.1_vae.safetensors --local-dir /models"
    );
    let set = set(Family::Wan22I2vA14b, Kind::Comfy);
    let all = commands(set.iter().map(|(_, source)| *source).chain([vae]), Path::new("/my models/it's"));
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("hf download Comfy-Org/Wan_2.2_ComfyUI_Repackaged split_files/"));
    assert_eq!(all[1].matches("wan_2.1_vae").count(), 1, "{}", all[1]);
    assert!(all.iter().all(|line| line.ends_with(r" --local-dir '/my models/it'\''s'")), "{all:?}");
}

#[test]
fn a_licence_that_is_not_named_is_said_to_be_so() {
    let licence = |kind| {
        let mut all = sources(Family::Wan21I2v480p, ModelPart::Vae);
        all.find(|source| source.kind == kind).expect("it is known").licence_title()
    };
    assert_eq!(licence(Kind::Official), "Apache-2.0");
    assert!(licence(Kind::Comfy).starts_with("not named there"));
}
