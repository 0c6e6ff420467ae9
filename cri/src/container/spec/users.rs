//! Who a container's first process is. A word of digits is always a number and any other word always a name, so that
//! a user called `1000` is nobody's way to another uid.

use k8s_cri::v1::{Int64Value, LinuxContainerSecurityContext, SupplementalGroupsPolicy};

use crate::error::{Error, Result};

/// Who the first process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// With the first among them, so that nothing is gained by giving it up.
    pub groups: Vec<u32>,
    /// For HOME.
    pub home: String,
}

/// The image's files, as far as it has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    pub passwd: &'a str,
    pub group: &'a str,
}

/// The greatest id that runtimes take.
const MAX: i64 = i32::MAX as i64;

/// The request's word, then the image's, then root.
pub fn user(context: &LinuxContainerSecurityContext, image: &str, files: Files<'_>) -> Result<User> {
    let asked = asked(context)?;
    let (own_user, own_group) = image.split_once(':').unwrap_or((image, ""));
    let (wanted, group) = match &asked {
        Some(wanted) => (wanted.as_str(), ""),
        None => (own_user, own_group),
    };
    let entry = entry(wanted, files.passwd)?;
    let gid = match &context.run_as_group {
        Some(gid) => id("run_as_group", gid.value)?,
        None if group.is_empty() => entry.gid,
        None => group_id(files.group, group)?,
    };
    let mut groups = match SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(SupplementalGroupsPolicy::Merge) => memberships(files.group, entry.name),
        Ok(SupplementalGroupsPolicy::Strict) => Vec::new(),
        Err(_) => return Err(Error::invalid("security_context.supplemental_groups_policy is unknown")),
    };
    for group in &context.supplemental_groups {
        groups.push(id("supplemental_groups", *group)?);
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid: entry.uid, gid, groups, home: entry.home.to_owned() })
}

fn asked(context: &LinuxContainerSecurityContext) -> Result<Option<String>> {
    match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            Err(Error::invalid(format!("run_as_user and run_as_username {name} exclude each other")))
        }
        (Some(Int64Value { value }), _) => id("run_as_user", *value).map(|uid| Some(uid.to_string())),
        (None, "") if context.run_as_group.is_some() => {
            Err(Error::invalid("run_as_group needs run_as_user or run_as_username"))
        }
        (None, "") => Ok(None),
        (None, name) => Ok(Some(name.to_owned())),
    }
}

fn id(field: &str, value: i64) -> Result<u32> {
    let fits = u32::try_from(value).ok().filter(|_| value <= MAX);
    fits.ok_or_else(|| Error::invalid(format!("{field} is {value}, ids are from 0 to {MAX}")))
}

/// A line of passwd(5).
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entry<'a>(wanted: &str, passwd: &'a str) -> Result<Entry<'a>> {
    let number = number(wanted, "user")?.or(wanted.is_empty().then_some(0));
    let found = passwd.lines().filter_map(line).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == wanted,
    });
    match (found, number) {
        (Some(entry), _) => Ok(entry),
        // A number needs no line; group 0 is what Kubernetes promises then.
        (None, Some(uid)) => Ok(Entry { name: "", uid, gid: 0, home: if uid == 0 { "/root" } else { "/" } }),
        (None, None) => Err(Error::invalid(format!("User {wanted:?} is not in the image's /etc/passwd"))),
    }
}

fn line(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1).filter(|home| home.starts_with('/')).unwrap_or("/");
    Some(Entry { name, uid, gid, home })
}

/// Digits and a sign before them are a number, and one that must fit; anything else is none.
fn number(word: &str, what: &str) -> Result<Option<u32>> {
    let digits = word.strip_prefix('-').unwrap_or(word);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let fits = word.parse::<i64>().ok().and_then(|value| id(what, value).ok());
    fits.map(Some).ok_or_else(|| Error::invalid(format!("{what} is {word}, ids are from 0 to {MAX}")))
}

fn group_id(groups: &str, wanted: &str) -> Result<u32> {
    if let Some(gid) = number(wanted, "group")? {
        return Ok(gid);
    }
    let mut found = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? == wanted { fields.nth(1)?.parse().ok() } else { None }
    });
    found.next().ok_or_else(|| Error::invalid(format!("Group {wanted:?} is not in the image's /etc/group")))
}

fn memberships(groups: &str, user: &str) -> Vec<u32> {
    let member = |line: &str| {
        let fields: Vec<&str> = line.trim_end().split(':').collect();
        let listed = fields.get(3).is_some_and(|users| users.split(',').any(|one| one == user));
        if listed { fields.get(2).and_then(|gid| gid.parse().ok()) } else { None }
    };
    if user.is_empty() { Vec::new() } else { groups.lines().filter_map(member).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: Files<'_> = Files {
        passwd: "root:x:0:0:root:/root:/bin/sh\nbad\nann:x:1000:1000::/home/ann:/bin/sh\n1001:x:7:7::/:/x\nbob:x:1001:50::bob:\n",
        group: "root:x:0:\nann:x:1000:\nwheel:x:10:bob,ann\nmail:x:12:ann\n1000:x:13:\nempty:x:14:,\n",
    };

    fn plain() -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext::default()
    }

    fn as_uid(uid: i64, gid: Option<i64>) -> LinuxContainerSecurityContext {
        let (run_as_user, run_as_group) = (Some(Int64Value { value: uid }), gid.map(|value| Int64Value { value }));
        LinuxContainerSecurityContext { run_as_user, run_as_group, ..plain() }
    }

    fn seen(context: &LinuxContainerSecurityContext, image: &str) -> (u32, u32, Vec<u32>, String) {
        let user = user(context, image, FILES).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn images_name_users() {
        for (image, uid, gid, groups, home) in [
            ("", 0, 0, vec![0], "/root"),
            ("ann", 1000, 1000, vec![10, 12, 1000], "/home/ann"),
            ("ann:mail", 1000, 12, vec![10, 12], "/home/ann"),
            ("1000", 1000, 1000, vec![10, 12, 1000], "/home/ann"),
            ("1000:1000", 1000, 1000, vec![10, 12, 1000], "/home/ann"),
            ("4242", 4242, 0, vec![0], "/"),
            ("4242:4343", 4242, 4343, vec![4343], "/"),
            (":wheel", 0, 10, vec![10], "/root"),
            // The number, and not the user whose name it is.
            ("1001", 1001, 50, vec![10, 50], "/"),
        ] {
            assert_eq!(seen(&plain(), image), (uid, gid, groups, home.to_owned()), "{image}");
        }
    }

    #[test]
    fn requests_go_before_images() {
        assert_eq!(seen(&as_uid(1000, None), "bob:mail").1, 1000);
        assert_eq!(seen(&as_uid(1000, Some(3)), "bob"), (1000, 3, vec![3, 10, 12], "/home/ann".into()));
        let by_name = LinuxContainerSecurityContext { run_as_username: "bob".into(), ..plain() };
        assert_eq!(seen(&by_name, "ann:mail"), (1001, 50, vec![10, 50], "/".into()));
        assert_eq!(seen(&as_uid(5, None), "ann:mail"), (5, 0, vec![0], "/".into()));
    }

    #[test]
    fn strict_takes_nothing_from_the_image() {
        let merge = LinuxContainerSecurityContext { supplemental_groups: vec![99, 10], ..as_uid(1000, None) };
        let strict = LinuxContainerSecurityContext {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
            ..merge.clone()
        };
        assert_eq!((seen(&merge, "").2, seen(&strict, "").2), (vec![10, 12, 99, 1000], vec![10, 99, 1000]));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let context = LinuxContainerSecurityContext { supplemental_groups: vec![-1], ..plain() };
        let group_only = LinuxContainerSecurityContext { run_as_group: Some(Int64Value { value: 1 }), ..plain() };
        let both = LinuxContainerSecurityContext { run_as_username: "ann".into(), ..as_uid(1, None) };
        let nobody = LinuxContainerSecurityContext { run_as_username: "eve".into(), ..plain() };
        for (context, image, word) in [
            (context, "", "supplemental_groups is -1"),
            (group_only, "", "run_as_group needs"),
            (both, "", "exclude"),
            (nobody, "", "\"eve\" is not in"),
            (as_uid(-1, None), "", "run_as_user is -1"),
            (as_uid(1 << 31, None), "", "run_as_user is 2147483648"),
            (as_uid(1, Some(1 << 40)), "", "run_as_group is"),
            (plain(), "eve", "\"eve\" is not in"),
            (plain(), "ann:eve", "Group \"eve\""),
            (plain(), "4294967296", "user is 4294967296"),
            (plain(), "-1", "user is -1"),
            (plain(), "0:99999999999999999999", "group is 9999"),
        ] {
            let error = user(&context, image, FILES).unwrap_err();
            assert!(matches!(&error, Error::Invalid(text) if text.contains(word)), "{error}");
        }
    }
}
