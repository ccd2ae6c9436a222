//! Files with keys, and the settings that name them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use sekiwake_bus::{
    AllowedKeys, ClientKeys, GatekeeperSettings, KeyError, KeyFileError, KeyPair, PublicKey, parse_allowed_keys,
    read_key_pair, read_public_key, write_key_pair,
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
fn the_public_key_is_derived_from_the_secret_one() {
    let pair = KeyPair::parse_file(&format!("# a comment\n\n  secret {SECRET}  \n")).unwrap();
    assert_eq!(pair.public().to_string(), PUBLIC);
    assert!(!format!("{pair:?}").contains(SECRET));
    let both = |public| KeyPair::parse_file(&format!("public {public}\nsecret\t{SECRET}\n")).map(|pair| pair.public());
    assert_eq!(both(PUBLIC), Ok(PUBLIC.parse().unwrap()));
    assert_eq!(both(OTHER), Err(KeyError::Mismatch));
}

#[test]
fn what_is_no_secret_key_is_refused_without_being_repeated() {
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
fn a_list_has_a_key_a_line_with_names_and_comments() {
    let list = format!("# clients\n\n{PUBLIC} capture at the border\n\t{OTHER}\n#{PUBLIC}\n");
    let keys = parse_allowed_keys(&list).unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[&PUBLIC.parse::<PublicKey>().unwrap()], "capture at the border");
    assert_eq!(keys[&OTHER.parse::<PublicKey>().unwrap()], "");
    for (text, expected) in [
        ("# none\n".to_owned(), KeyError::Empty),
        (format!("{PUBLIC}\n{PUBLIC}x\n"), KeyError::NoKey { line: 2 }),
        // Over 32 bits, and not a digit of Z85.
        (format!("{}{}", "%nSc1", &PUBLIC[5..]), KeyError::NoKey { line: 1 }),
        (format!("{}~", &PUBLIC[..39]), KeyError::NoKey { line: 1 }),
        (format!("secret {SECRET}"), KeyError::Secret),
    ] {
        assert_eq!(parse_allowed_keys(&text).unwrap_err(), expected, "{text}");
    }
    assert_eq!(PublicKey::parse_file(&list), Err(KeyError::Several));
}

proptest! {
    #[test]
    fn the_text_of_a_key_is_that_key(text in "[0-9a-zA-Z.:+=^!/*?&<>()\\[\\]{}@$-]{40}") {
        // The first digit of each five decides whether they fit 32 bits.
        if let Ok(key) = text.parse::<PublicKey>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC*", lines in "((secret|public|#)? ?[!-~]{0,42}\\s)*") {
        for text in [&text, &lines] {
            let _ = (KeyPair::parse_file(text), PublicKey::parse_file(text), parse_allowed_keys(text));
        }
    }
}

#[test]
fn a_pair_that_is_written_can_be_read_and_is_never_written_over() {
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
    // With the public key alone in the way nothing is left behind.
    fs::remove_file(&path).unwrap();
    assert!(matches!(again(), Err(KeyFileError::Create { path, .. }) if path == public_path));
    assert!(!path.exists());
    assert_eq!(read_public_key(&public_path).unwrap(), pair.public());
}

/// Key files as an operator has them.
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

    /// Reads the settings of a party, and gives what is wrong with them, one a line.
    fn mistakes<T>(&self, body: impl FnOnce(&mut Reader) -> Option<T>, pairs: &[(&str, &str)]) -> Vec<String> {
        let pairs = pairs.iter().map(|(name, file)| (*name, self.path(file)));
        match read(&Environment::from_pairs(pairs), body) {
            Ok(_) => vec![],
            Err(mistakes) => mistakes.to_string().lines().map(str::to_owned).collect(),
        }
    }
}

#[test]
fn keys_are_set_completely_or_not_at_all() {
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
    let unfit = proxy(&[(KEY, "proxy"), (ALLOWED, "capture.pub"), (SERVER, "capture.pub")]);
    assert!(matches!(&unfit[..], [line] if line.starts_with(SERVER) && line.contains("belongs")), "{unfit:?}");
}

#[test]
fn a_file_that_does_not_hold_what_it_should_is_a_mistake_in_the_variable_that_names_it() {
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
        (KEY, ".", "no regular file"),
        (KEY, "bytes", "UTF-8"),
        (SERVER, "missing", "No such file"),
        (SERVER, "proxy", "secret key"),
        (SERVER, "garbage", "line 1 is no key"),
        (ALLOWED, "missing", "No such file"),
        (ALLOWED, "garbage", "line 1 is no key"),
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
fn a_key_where_its_files_name_belongs_is_not_repeated() {
    let pairs = [(KEY, SECRET), (SERVER, PUBLIC)];
    let mistakes = read(&Environment::from_pairs(pairs), ClientKeys::read).unwrap_err().to_string();
    assert_eq!(mistakes.lines().count(), 2);
    assert!(mistakes.contains(KEY) && !mistakes.contains(SECRET), "{mistakes}");
}
