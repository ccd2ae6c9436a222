//! Key files, and the settings that name them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use sekiwake_bus::zeromq::{
    AllowedKeys, ClientKeys, GatekeeperSettings, KeyChanges, KeyError, KeyFileError, KeyPair, PublicKey,
    parse_allowed_keys, read_key_pair, read_public_key, write_key_pair,
};
use sekiwake_settings::{Environment, Reader, read};

// The keys of zmq_curve(7).
const PUBLIC: &str = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
const SECRET: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
const OTHER: &str = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";

const KEY: &str = "SEKIWAKE_BUS_KEY_FILE";
const SERVER: &str = "SEKIWAKE_BUS_SERVER_KEY_FILE";
const ALLOWED: &str = "SEKIWAKE_BUS_ALLOWED_KEYS_FILE";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn public_key_is_derived_from_the_secret_key() {
    let pair = KeyPair::parse_file(&format!("# a comment\n\n  secret {SECRET}  \n")).unwrap();
    assert_eq!(pair.public().to_string(), PUBLIC);
    assert!(!format!("{pair:?}").contains(SECRET));
    let both = |public| KeyPair::parse_file(&format!("public {public}\nsecret\t{SECRET}\n")).map(|pair| pair.public());
    assert_eq!(both(PUBLIC), Ok(PUBLIC.parse().unwrap()));
    assert_eq!(both(OTHER), Err(KeyError::Mismatch));
}

#[test]
fn invalid_secret_key_is_rejected_without_quoting_it() {
    for (text, expected) in [
        ("", KeyError::Empty),
        (&format!("public {PUBLIC}"), KeyError::Empty),
        (&format!("{PUBLIC} capture-1"), KeyError::NotSecret { line: 1 }),
        (&format!("\nsecret {}", &SECRET[1..]), KeyError::NoKey { line: 2 }),
        (&format!("secret {SECRET} more"), KeyError::NoKey { line: 1 }),
        (&format!("secret {SECRET}\nsecret {SECRET}"), KeyError::Several),
    ] {
        let error = KeyPair::parse_file(text).unwrap_err();
        assert_eq!(error, expected, "{text}");
        assert!(!error.to_string().contains(&SECRET[1..]) && !error.to_string().contains(PUBLIC));
    }
}

#[test]
fn list_has_one_key_per_line_with_names_and_comments() {
    let list = format!("# clients\n\n{PUBLIC} capture at the border\n\t{OTHER}\n#{PUBLIC}\n");
    let keys = parse_allowed_keys(&list).unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[&PUBLIC.parse::<PublicKey>().unwrap()], "capture at the border");
    assert_eq!(keys[&OTHER.parse::<PublicKey>().unwrap()], "");
    for (text, expected) in [
        ("# none\n".to_owned(), KeyError::Empty),
        (format!("{PUBLIC}\n{PUBLIC}x\n"), KeyError::NoKey { line: 2 }),
        // A group over 32 bits, and a character that is not Z85.
        (format!("{}{}", "%nSc1", &PUBLIC[5..]), KeyError::NoKey { line: 1 }),
        (format!("{}~", &PUBLIC[..39]), KeyError::NoKey { line: 1 }),
        (format!("secret {SECRET}"), KeyError::Secret),
    ] {
        assert_eq!(parse_allowed_keys(&text).unwrap_err(), expected, "{text}");
    }
    assert_eq!(PublicKey::parse_file(&list), Err(KeyError::Several));
}

#[test]
fn changed_list_names_added_and_removed_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("allowed.keys");
    // A rename gives every version a new inode.
    let write = |text: String| {
        let new = folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
    };
    write(format!("{PUBLIC} capture-1\n"));
    let mut keys = AllowedKeys::read(&path).unwrap();
    assert_eq!(keys.refresh().unwrap(), None);
    write(format!("{OTHER}\n"));
    let changes = KeyChanges { added: vec![OTHER.to_owned()], removed: vec!["capture-1".to_owned()] };
    assert_eq!(keys.refresh().unwrap(), Some(changes));
    write(format!("# a comment\n{OTHER} forwarder\n"));
    assert_eq!(keys.refresh().unwrap(), Some(KeyChanges::default()), "the same keys");
}

proptest! {
    #[test]
    fn key_round_trips_as_text(text in "[0-9a-zA-Z.:+=^!/*?&<>()\\[\\]{}@$-]{40}") {
        // A group of five may exceed 32 bits, depending on its first character.
        if let Ok(key) = text.parse::<PublicKey>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn parsers_do_not_panic(text in "\\PC*", lines in "((secret|public|#)? ?[!-~]{0,42}\\s)*") {
        for text in [&text, &lines] {
            let _ = (KeyPair::parse_file(text), PublicKey::parse_file(text), parse_allowed_keys(text));
        }
    }
}

#[test]
fn written_pair_can_be_read_and_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capture 1.key");
    let public_path = folder.path().join("capture 1.key.pub");
    let pair = KeyPair::generate().unwrap();
    let line = write_key_pair(&path, &pair).unwrap();
    assert_eq!(line, format!("{} capture-1", pair.public()));
    assert_eq!((mode(&path), mode(&public_path) & 0o600), (0o600, 0o600));
    assert_eq!(read_key_pair(&path).unwrap().public(), pair.public());
    assert_eq!(read_public_key(&public_path).unwrap(), pair.public());
    assert_eq!(AllowedKeys::read(&public_path).unwrap().name_of(&pair.public()), Some("capture-1"));

    let text = fs::read_to_string(&path).unwrap();
    let again = || write_key_pair(&path, &KeyPair::generate().unwrap());
    assert!(matches!(again(), Err(KeyFileError::Create { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    // If only the public key exists, no secret key is left behind.
    fs::remove_file(&path).unwrap();
    assert!(matches!(again(), Err(KeyFileError::Create { path, .. }) if path == public_path));
    assert!(!path.exists());
    assert_eq!(read_public_key(&public_path).unwrap(), pair.public());
}

/// Key files in a directory.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files { folder: tempfile::tempdir().unwrap() };
        for name in ["proxy", "capture"] {
            write_key_pair(&files.path(name), &KeyPair::generate().unwrap()).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Reads settings, and returns their mistakes, one per line.
    fn mistakes<T>(&self, body: impl FnOnce(&mut Reader) -> Option<T>, pairs: &[(&str, &str)]) -> Vec<String> {
        let pairs = pairs.iter().map(|(name, file)| (*name, self.path(file)));
        match read(&Environment::from_pairs(pairs), body) {
            Ok(_) => vec![],
            Err(mistakes) => mistakes.to_string().lines().map(str::to_owned).collect(),
        }
    }
}

#[test]
fn incomplete_keys_are_a_mistake() {
    let files = Files::new();
    let client = |pairs: &[_]| files.mistakes(ClientKeys::read, pairs);
    let proxy = |pairs: &[_]| files.mistakes(GatekeeperSettings::read, pairs);
    let is_missing = |mistakes: &[String], name: &str| {
        assert!(matches!(mistakes, [line] if line.starts_with(&format!("{name} is not set"))), "{mistakes:?}");
    };
    let no_file: [(&str, &str); 0] = [];
    assert_eq!(client(&no_file), [""; 0]);
    assert_eq!(client(&[(KEY, "capture"), (SERVER, "proxy.pub")]), [""; 0]);
    is_missing(&client(&[(KEY, "capture")]), SERVER);
    is_missing(&client(&[(SERVER, "proxy.pub")]), KEY);

    assert_eq!(proxy(&no_file), [""; 0]);
    assert_eq!(proxy(&[(KEY, "proxy"), (ALLOWED, "capture.pub")]), [""; 0]);
    assert_eq!(proxy(&[(KEY, "proxy"), (ALLOWED, "capture.pub"), (SERVER, "proxy.pub")]), [""; 0]);
    is_missing(&proxy(&[(KEY, "proxy")]), ALLOWED);
    is_missing(&proxy(&[(ALLOWED, "capture.pub")]), KEY);
    assert_eq!(proxy(&[(SERVER, "proxy.pub")]).len(), 2);
    let mismatch = proxy(&[(KEY, "proxy"), (ALLOWED, "capture.pub"), (SERVER, "capture.pub")]);
    assert!(
        matches!(&mismatch[..], [line] if line.starts_with(SERVER) && line.contains("the proxy's public key")),
        "{mismatch:?}"
    );
}

#[test]
fn invalid_key_file_is_a_mistake_of_its_variable() {
    let files = Files::new();
    files.write("readable", &fs::read_to_string(files.path("capture")).unwrap(), 0o640);
    files.write("garbage", "no key\n", 0o600);
    files.write("bytes", "", 0o600);
    fs::write(files.path("bytes"), [0xff; 64]).unwrap();
    files.write("large", &"#\n".repeat(1 << 20), 0o600);
    for (name, file, reason) in [
        (KEY, "missing", "No such file"),
        (KEY, "garbage", "secret or public"),
        (KEY, "capture.pub", "secret or public"),
        (KEY, "readable", "mode 0640"),
        (KEY, ".", "not a regular file"),
        (KEY, "bytes", "UTF-8"),
        (SERVER, "missing", "No such file"),
        (SERVER, "proxy", "secret key"),
        (SERVER, "garbage", "line 1 is not a key"),
        (ALLOWED, "missing", "No such file"),
        (ALLOWED, "garbage", "line 1 is not a key"),
        (ALLOWED, "capture", "secret key"),
        (ALLOWED, "large", "larger than 1 MiB"),
    ] {
        let mistakes = if name == ALLOWED {
            files.mistakes(GatekeeperSettings::read, &[(KEY, "proxy"), (ALLOWED, file)])
        } else {
            let mut pairs = vec![(KEY, "capture"), (SERVER, "proxy.pub")];
            pairs.retain(|(other, _)| *other != name);
            files.mistakes(ClientKeys::read, &[&pairs[..], &[(name, file)]].concat())
        };
        let [line] = &mistakes[..] else { panic!("{name}={file}: {mistakes:?}") };
        assert!(line.starts_with(&format!("{name}=")) && line.contains(reason), "{file}: {line}");
    }
}

#[test]
fn key_in_place_of_a_file_name_is_not_printed() {
    let pairs = [(KEY, SECRET), (SERVER, PUBLIC)];
    let mistakes = read(&Environment::from_pairs(pairs), ClientKeys::read).unwrap_err().to_string();
    assert_eq!(mistakes.lines().count(), 2);
    assert!(mistakes.contains(KEY) && !mistakes.contains(SECRET), "{mistakes}");
}
