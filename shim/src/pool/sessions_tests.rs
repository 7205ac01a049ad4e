//! Sessions, their instances and their ends.

use std::time::Duration;

use super::*;

fn sessions(change: impl FnOnce(&mut SessionAffinity)) -> Arc<Sessions> {
    let mut rules = SessionAffinity { sessions: 2, ..SessionAffinity::default() };
    change(&mut rules);
    Sessions::new(&rules)
}

#[track_caller]
fn search(sessions: &Arc<Sessions>, id: &str) -> Search {
    match sessions.find(id) {
        Found::New(search) => search,
        Found::Bound(_) | Found::Searched(_) | Found::Over => panic!("{id} is known"),
    }
}

/// Binds a new session, if there is a place.
#[track_caller]
fn bind(sessions: &Arc<Sessions>, id: &str, instance: &str) -> Option<Use> {
    let search = search(sessions, id);
    sessions.keep(instance).then(|| search.found(sessions.place(instance)))
}

fn bound(sessions: &Arc<Sessions>, id: &str) -> Option<String> {
    match sessions.find(id) {
        Found::Bound(instance) => Some(instance.to_string()),
        Found::New(_) | Found::Searched(_) | Found::Over => None,
    }
}

#[test]
fn a_session_keeps_its_instance_which_has_so_many() {
    let sessions = sessions(|_| ());
    let one = bind(&sessions, "one", "i").expect("a place");
    let _two = bind(&sessions, "two", "i").expect("a place");
    assert!(bind(&sessions, "three", "i").is_none(), "there are two places");
    let _three = bind(&sessions, "three", "j").expect("a place");
    drop(one);
    assert_eq!(bound(&sessions, "one").as_deref(), Some("i"));
    assert_eq!(bound(&sessions, "three").as_deref(), Some("j"));
    assert!(sessions.use_of("one", "i").is_some() && sessions.use_of("one", "j").is_none());
    assert!(sessions.has("i") && !sessions.has("k"));
}

#[test]
fn a_session_may_have_its_id_from_its_function() {
    let sessions = sessions(|_| ());
    let first = bind(&sessions, "made", "i").expect("a place");
    sessions.ends_with_its_calls("made");
    sessions.name("made", "chosen", true);
    assert!(sessions.bound("chosen").is_some() && sessions.bound("made").is_none());
    drop(first);
    assert!(sessions.bound("chosen").is_some());
    assert_eq!(sessions.inner().sessions["chosen"].running, 0);
    // An id that is another's already, and one that never came: over with the call.
    for id in [Some("chosen"), None] {
        let made = format!("made for {id:?}");
        let second = bind(&sessions, &made, "i").expect("a place");
        sessions.ends_with_its_calls(&made);
        id.into_iter().for_each(|id| sessions.name(&made, id, true));
        drop(second);
        assert!(sessions.bound(&made).is_none() && sessions.bound("chosen").is_some());
    }
    sessions.end("chosen");
    assert!(sessions.bound("chosen").is_none() && !sessions.has("i") && sessions.inner().names.is_empty());
    let _third = bind(&sessions, "made again", "i").expect("a place");
    sessions.name("made again", "chosen", true);
    sessions.forget("i");
    assert!(sessions.bound("chosen").is_none() && sessions.inner().names.is_empty());
}

#[test]
fn a_session_that_does_not_last_is_over_with_its_last_call() {
    let sessions = sessions(|rules| rules.lifetime = Duration::ZERO);
    let stream = bind(&sessions, "made", "i").expect("a place");
    sessions.ends_with_its_calls("made");
    sessions.name("made", "chosen", false);
    sessions.sweep();
    let call = sessions.use_of("chosen", "i").expect("its instance");
    drop(stream);
    assert!(sessions.bound("chosen").is_some(), "a call runs");
    drop(call);
    assert!(sessions.bound("chosen").is_none() && !sessions.has("i"));
}

#[test]
fn one_looks_for_an_instance_at_a_time_and_who_gives_up_leaves_nothing() {
    let sessions = sessions(|_| ());
    let first = search(&sessions, "one");
    let Found::Searched(outcome) = sessions.find("one") else { panic!("somebody looks") };
    first.failed(&Refusal::Throttled);
    drop(first);
    assert!(outcome.get().is_some(), "who waited is told");
    let again = search(&sessions, "one");
    assert!(sessions.keep("i"));
    let place = sessions.place("i");
    drop((again, place));
    assert!(!sessions.has("i"), "the place is given back");
    assert!(sessions.inner().sessions.is_empty());
}

#[test]
fn an_id_is_used_again_only_where_it_may_be() {
    for single_use in [false, true] {
        let sessions = sessions(|rules| (rules.idle, rules.single_use) = (Duration::ZERO, single_use));
        for id in ["swept", "found"] {
            drop(bind(&sessions, id, "i").expect("a place"));
            if id == "swept" {
                sessions.sweep();
            }
            assert_eq!(matches!(sessions.find(id), Found::Over), single_use, "{id}");
            assert!(!sessions.has("i"), "{id}: its place is free");
        }
        // One whose instance has gone, and one that nobody found an instance for, have not ended by themselves.
        let _running = bind(&sessions, "gone", "j").expect("a place");
        sessions.forget("j");
        drop(search(&sessions, "gone"));
        assert!(matches!(sessions.find("gone"), Found::New(_)));
    }
}

#[test]
fn ids_that_are_over_are_bounded() {
    let mut over = Over::default();
    for number in 0..MAX_OVER + 10 {
        over.add(number.to_string().into());
        over.add(number.to_string().into());
    }
    assert_eq!((over.ids.len(), over.order.len()), (MAX_OVER, MAX_OVER));
    assert!(!over.ids.contains("9") && over.ids.contains("10"));
}

#[test]
fn an_instance_that_is_gone_takes_its_sessions_along() {
    let sessions = sessions(|_| ());
    let running = bind(&sessions, "one", "i").expect("a place");
    let _other = bind(&sessions, "two", "j").expect("a place");
    sessions.forget("i");
    assert_eq!((bound(&sessions, "one"), bound(&sessions, "two").as_deref()), (None, Some("j")));
    // The end of a call of a session that is no more does no harm.
    drop(running);
    let _again = bind(&sessions, "one", "j").expect("a place");
    sessions.unbind("one", "i");
    assert_eq!(bound(&sessions, "one").as_deref(), Some("j"));
    sessions.unbind("one", "j");
    assert_eq!(bound(&sessions, "one"), None);
    assert!(sessions.keep("j"), "its place is free again");
}

#[test]
fn sessions_end_when_they_are_old_or_idle_and_not_while_they_run() {
    let short = Duration::from_millis(30);
    let idle = sessions(|rules| rules.idle = short);
    let running = bind(&idle, "one", "i").expect("a place");
    std::thread::sleep(short * 2);
    idle.sweep();
    assert_eq!(bound(&idle, "one").as_deref(), Some("i"), "a call runs");
    drop(running);
    assert_eq!(bound(&idle, "one").as_deref(), Some("i"), "it was used just now");
    std::thread::sleep(short * 2);
    assert_eq!(bound(&idle, "one"), None);
    assert!(!idle.has("i"));
    let old = sessions(|rules| rules.lifetime = short);
    let _running = bind(&old, "one", "i").expect("a place");
    std::thread::sleep(short * 2);
    old.sweep();
    assert_eq!((bound(&old, "one"), old.has("i")), (None, false), "whatever runs");
}
