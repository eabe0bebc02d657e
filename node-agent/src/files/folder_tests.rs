#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt as _;

use zeroize::Zeroizing;

use super::*;

fn content(name: &'static str, text: &str) -> Content {
    Content {
        name,
        secret: name == KEY || name == PKCS12,
        bytes: Zeroizing::new(text.as_bytes().to_vec()),
    }
}

fn set(text: &str) -> Vec<Content> {
    [CERTIFICATE, KEY, BUNDLE]
        .map(|name| content(name, text))
        .into()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn opened(path: &Path) -> Folder {
    Folder::open(path, Access::default()).unwrap()
}

#[test]
fn files_have_their_names_and_modes() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/b");
    opened(&path).write(&set("one")).unwrap();
    assert_eq!(mode(&path), 0o700);
    for (name, wanted) in [(CERTIFICATE, 0o644), (KEY, 0o600), (BUNDLE, 0o644)] {
        assert_eq!(mode(&path.join(name)), wanted, "{name}");
        assert_eq!(fs::read_to_string(path.join(name)).unwrap(), "one");
        // Each leads through the one link that changes.
        assert_eq!(
            fs::read_link(path.join(name)).unwrap(),
            Path::new(DATA).join(name)
        );
    }
}

#[test]
fn whoever_looks_through_the_link_once_never_sees_a_mixed_set() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().to_owned();
    let folder = opened(&path);
    folder.write(&set("0")).unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = 0;
        loop {
            let data = path.join(fs::read_link(path.join(DATA)).unwrap());
            let read = |name: &str| fs::read_to_string(data.join(name));
            // Two sets later its folder is gone: then both reads fail, or the first.
            if let (Ok(chain), Ok(key)) = (read(CERTIFICATE), read(KEY)) {
                assert_eq!(chain, key);
                seen += 1;
                if chain == "200" {
                    return seen;
                }
            }
        }
    });
    for number in 1..=200 {
        folder.write(&set(&number.to_string())).unwrap();
    }
    assert!(reader.join().unwrap() > 1);
    let sets = fs::read_dir(parent.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(SET)
    });
    assert_eq!(sets.count(), 2, "the current set and the last one");
}

#[test]
fn plain_files_of_before_are_replaced_also_a_key_that_was_open_to_all() {
    let folder = tempfile::tempdir().unwrap();
    for name in [CERTIFICATE, KEY] {
        fs::write(folder.path().join(name), "old").unwrap();
    }
    opened(folder.path()).write(&set("new")).unwrap();
    assert_eq!(mode(&folder.path().join(KEY)), 0o600);
    assert_eq!(fs::read_to_string(folder.path().join(KEY)).unwrap(), "new");
}

#[test]
fn a_failure_leaves_the_old_set_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let opened = opened(folder.path());
    opened.write(&set("old")).unwrap();
    let twice = [content(KEY, "a"), content(KEY, "b")];
    opened.write(&twice).unwrap_err();
    assert_eq!(fs::read_to_string(folder.path().join(KEY)).unwrap(), "old");
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 3 + 1 + 1, "links, ..data, one set");
}

#[test]
fn a_format_that_is_no_longer_wanted_goes() {
    let folder = tempfile::tempdir().unwrap();
    let opened = opened(folder.path());
    let mut all = set("one");
    all.push(content(PKCS12, "one"));
    opened.write(&all).unwrap();
    assert_eq!(mode(&folder.path().join(PKCS12)), 0o600);
    opened.write(&set("two")).unwrap();
    assert!(fs::symlink_metadata(folder.path().join(PKCS12)).is_err());
}

#[test]
fn a_folder_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o770)).unwrap();
    let refused = Folder::open(folder.path(), Access::default()).unwrap_err();
    assert!(refused.to_string().contains("mode 770"), "{refused}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    Folder::open(&file, Access::default()).unwrap_err();
}
