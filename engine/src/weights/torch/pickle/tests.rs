//! Reads pickles as torch writes them, broken ones, and hostile ones.

use super::*;

/// Returns a call of `_rebuild_tensor_v2` for storage `key`, a `FloatStorage` with `elements`, as protocol 2 writes it.
fn tensor(elements: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut p = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007X\x03\0\0\0cpuK".to_vec();
    p.extend([elements, b't', b'Q', b'K', 0, b'(']);
    p.extend(shape.iter().flat_map(|e| [b'K', *e]));
    p.extend(b"t(");
    p.extend(strides.iter().flat_map(|e| [b'K', *e]));
    p.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    p
}

fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

fn refusal(body: &[u8]) -> String {
    read(&pickle(body)).unwrap_err()
}

#[test]
fn a_dictionary_of_tensors_is_read() {
    let body = [&b"}(X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[1, 2]), b"X\x05\0\0\0epochK\x03u"].concat();
    let tensors = read(&pickle(&body)).unwrap();
    let expected = PickledTensor {
        dtype: DType::F32,
        key: "7".to_owned(),
        storage_elements: 6,
        offset: 0,
        shape: vec![2, 3],
        strides: vec![1, 2],
    };
    assert_eq!(tensors, [("a".to_owned(), expected)]);
    // The dictionary is in a wrapper, and its items are set one at a time.
    let wrapped = [&b"}X\x0a\0\0\0state_dict"[..], &body, b"s"].concat();
    assert_eq!(read(&pickle(&wrapped)).unwrap(), tensors);
}

#[test]
fn nothing_is_called() {
    for body in [
        &b"cos\nsystem\n(X\x02\0\0\0lstR"[..],
        b"\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R",
        b"cbuiltins\neval\n(X\x01\0\0\x001tR",
        b"csubprocess\nPopen\n)\x81",
    ] {
        let text = refusal(body);
        assert!(text.contains("runs code"), "{text}");
    }
    assert!(refusal(b"ctorch\nload\n)R").contains("torch's `torch.load`"));
    assert!(refusal(b"cos\nsystem\n(X\x02\0\0\0lstR").contains("`os.system`"));
    assert!(refusal(b"(cos\nsystem\no").contains("runs code"));
    assert!(refusal(b"(ios\nsystem\n").contains("0x69"));
}

#[test]
fn broken_pickles_are_refused() {
    let whole = pickle(&[&b"}(X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[3, 1]), b"u"].concat());
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "{length}");
    }
    for body in [
        &b""[..],
        b"N",
        b"0",
        b"t",
        b"(0",
        b"s",
        b"}K\x01s",
        b"}(K\x01u",
        b"h\0",
        b"K\x01\x85\x86",
        b"(K\x01\x85",
        b"}K\x01b0",
        b"K\x01}b",
        b"X\xff\xff\xff\xffa",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\xff",
        b"K\x01Q",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ccollections\nOrderedDict\n]\x85R",
        b"\xff",
    ] {
        assert!(read(&pickle(body)).is_err(), "{body:?}");
    }
    assert!(read(b"\x80\x09}.").unwrap_err().contains("protocol 9"));
}

#[test]
fn deep_and_cyclic_values_do_no_harm() {
    let deep = [&b"}K\x01)"[..], &vec![0x85; 1 << 20], b"s"].concat();
    assert_eq!(read(&pickle(&deep)).unwrap(), []);
    assert_eq!(read(&pickle(b"}q\0X\x01\0\0\0ah\0s")).unwrap(), []);
    assert_eq!(read(&pickle(b"}q\0X\x0a\0\0\0state_dicth\0s")).unwrap(), []);
}

#[test]
fn a_small_pickle_cannot_ask_for_much() {
    let name = [&b"X\0\0\x01\0"[..], &vec![b'a'; 1 << 16]].concat();
    let body = [&b"}("[..], &name, &tensor(6, &[6], &[1]), b"u"].concat();
    assert!(refusal(&body).contains("longer than"));
    let one = [&b"}("[..], b"X\x01\0\0\0aq\0", &tensor(6, &[6], &[1]), b"q\x01"].concat();
    let many = [&one[..], &b"h\0h\x01".repeat(70_000), b"u"].concat();
    assert!(refusal(&many).contains("more than"));
}

#[test]
fn numbers_of_all_widths() {
    let body = [&b"}X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[3, 1]), b"s"].concat();
    let expected = read(&pickle(&body)).unwrap();
    let three = [
        &b"K\x03"[..],
        b"M\x03\0",
        b"J\x03\0\0\0",
        b"\x8a\x01\x03",
        b"\x8b\x01\0\0\0\x03",
        b"I3\n",
        b"L3L\n",
    ];
    for number in three {
        let at = body.windows(3).position(|w| w == b"\x02K\x03").unwrap() + 1;
        let body = [&body[..at], number, &body[at + 2..]].concat();
        assert_eq!(read(&pickle(&body)).unwrap(), expected, "{number:?}");
    }
    let negative = [&b"}X\x01\0\0\0a"[..], &tensor(6, &[2, 3], &[3, 1]), b"s"].concat();
    let at = negative.windows(3).position(|w| w == b"\x02K\x03").unwrap() + 1;
    let negative = [&negative[..at], b"\x8a\x01\xff", &negative[at + 2..]].concat();
    assert!(refusal(&negative).contains("negative"));
}
