//! Fuzzes the engine's reading of tokenizers: sentencepiece's file, `tokenizer.json`, and what model files carry. A
//! tokenizer that is let through has to cut a text.
#![no_main]

use std::io::Write as _;

use animd_engine::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: {
    // The engine catches the panics of its tokenizer library. The fuzzer's own hook would end the process before that; a
    // panic that nobody catches still ends it.
    std::panic::set_hook(Box::new(|_| {}));
}, |data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a temporary file");
    file.write_all(data).expect("it can be written");
    if let Ok(tokenizer) = Tokenizer::open(file.path())
        && let Ok(tokens) = tokenizer.encode("A cat, and \u{ff26}\u{ff55}ll width \u{1f642}.")
    {
        assert!(!tokens.ids.is_empty() && tokens.ids.len() <= 512);
    }
});
