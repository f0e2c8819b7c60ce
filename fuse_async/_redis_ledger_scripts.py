"""What a ledger's Lua scripts are, and how an entry is written in Redis. No I/O.

All of a ledger is under a few keys with one hash tag, so that a cluster has them in one place:

==============  ==================================================================================
``meta``        hash: epoch and secret, which are made once; schema; how many owners there were
``entries``     hash: an entry by its key, packed as below
``order``       list: the keys in the order of their first claims
``owners``      hash: lease, last request and its answer, for each open ledger object
``counts``      hash: how many entries are in a state; what is in flight, by state and owner
``campaigns``   hash: a campaign's number by its name; ``names`` a list, the other way round
``batches``     hash: how many uploads a campaign had
``waiting``     there while somebody waits for keys: only then is it told which were settled
==============  ==================================================================================

An entry is its head, its ending (what `Settled` said), and what its claim said (`claim_bytes`).
An owner's lease is in seconds of the server's clock. An owner whose lease has ended is dead for
good: it comes back as a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from struct import Struct
from typing import Any, Final

from fuse_async._ledger_values import Claim, Settled

__all__ = [
    "APPLY",
    "CLOSE",
    "DEAD",
    "DONE",
    "FOREIGN",
    "KEYS",
    "LOST",
    "NEWER",
    "OPEN",
    "PAGE",
    "RESOLVE",
    "ROLLED_BACK",
    "SUMMARY",
    "SWEEP",
    "VIA_CODES",
    "Script",
    "claim_bytes",
    "ending_bytes",
    "entry_row",
    "fence",
    "settled_keys",
]

KEYS = ("meta", "entries", "order", "owners", "counts", "campaigns", "names", "batches", "waiting")

# What a script's answer begins with.
DONE, DEAD, LOST, ROLLED_BACK, NEWER, FOREIGN = range(6)

# state, owner, serial (6 bytes), updated, sent, batch, via, campaign, length of the ending. Owner
# and serial are the fence: no two claims ever share them.
_HEAD = Struct("<BI6sddIBIH")
_ENDING = Struct("<B8s")
_FACTS = Struct("<24sqq")
_LENGTH = Struct("<H")
_NONE = 0xFFFF
_MATCHES: Final = ("none", "answer", "matched", "assumed")
_HAS_ID = 0x80
_LONGEST_REASON = 1000
VIA_CODES: Final = {None: 0, "queue": 1, "bulk_queue": 2}
_VIAS: Final = (None, "queue", "bulk_queue")


class Script:
    """A Lua script and its name at the server."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()


def fence(owner: int, serial: int) -> bytes:
    """Return the token of a claim as it is in an entry's head."""
    return owner.to_bytes(4, "little") + serial.to_bytes(6, "little")


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _optional(value: str | None) -> bytes:
    if value is None:
        return _LENGTH.pack(_NONE)
    encoded = _text(value)
    return _LENGTH.pack(len(encoded)) + encoded


def claim_bytes(claim: Claim, facts: bytes, keeps_number: bool) -> bytes:
    """Return the last part of an entry: hashes, deployment, and the number where it is kept."""
    place = claim.deployment
    return (
        _FACTS.pack(facts, place.application_id, place.deployment_id)
        + _optional(claim.digits if keeps_number else None)
        + _optional(claim.postd if keeps_number else None)
    )


def ending_bytes(match: str, call_id: int | None, reason: str | None) -> bytes:
    """Return the middle part of an entry. Raises `ValueError` for an id that no Redis ledger can
    hold: one that is no 64-bit number."""
    flag = _MATCHES.index(match)
    number = bytes(8)
    if call_id is not None:
        flag |= _HAS_ID
        try:
            number = call_id.to_bytes(8, "little", signed=True)
        except (OverflowError, AttributeError):
            raise ValueError("call_id is no 64-bit number") from None
    return (
        _ENDING.pack(flag, number)
        + ("" if reason is None else f"={reason}").encode("utf-8", "surrogatepass")[
            :_LONGEST_REASON
        ]
    )


def settled_bytes(one: Settled) -> bytes:
    """Return the ending that `Settled` says."""
    return ending_bytes(one.id_match, one.call_id, one.reason)


def _piece(value: bytes, start: int) -> tuple[str | None, int]:
    (length,) = _LENGTH.unpack_from(value, start)
    start += _LENGTH.size
    if length == _NONE:
        return None, start
    return value[start : start + length].decode("utf-8", "surrogatepass"), start + length


def entry_row(key: bytes, value: bytes) -> tuple[Any, ...]:
    """Return an entry as a row with the columns of `entry_of`, and its facts."""
    state, owner, _, updated, sent, batch, via, campaign, length = _HEAD.unpack_from(value)
    match = call_id = reason = None
    start = _HEAD.size
    if length:
        flag, number = _ENDING.unpack_from(value, start)
        match = _MATCHES[flag & ~_HAS_ID]
        if flag & _HAS_ID:
            call_id = int.from_bytes(number, "little", signed=True)
        said = value[start + _ENDING.size : start + length]
        reason = said[1:].decode("utf-8", "replace") if said else None
    facts, application, deployment = _FACTS.unpack_from(value, start + length)
    digits, start = _piece(value, start + length + _FACTS.size)
    postd, _ = _piece(value, start)
    return (
        0,
        key.decode("utf-8", "surrogatepass"),
        state,
        owner,
        call_id,
        campaign or None,
        updated,
        match,
        _VIAS[via],
        sent or None,
        batch or None,
        reason,
        application,
        deployment,
        digits,
        postd,
        facts,
    )


def settled_keys(message: bytes) -> Sequence[str] | None:
    """Return the keys that a message on the ledger's channel names; None where it may be any."""
    if not message:
        return None
    keys, start = [], 0
    while start < len(message):
        end = start + 4 + int.from_bytes(message[start : start + 4], "little")
        keys.append(message[start + 4 : end].decode("utf-8", "surrogatepass"))
        start = end
    return keys


# -- Lua ------------------------------------------------------------------------------------------

_COMMON = """
local meta, entries, order, owners, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local campaigns, names, batches, waiting = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local call, pack, unpack_ = redis.call, struct.pack, struct.unpack
local sub, byte = string.sub, string.byte
local HEAD, SIZE = '<BI4I6ddI4BI4I2', 38
local clock = call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

-- Whether a ledger object is known, and whether its lease lasts.
local known, alive = {}, {}
local function look(owner)
  if known[owner] == nil then
    local record = call('HGET', owners, owner)
    known[owner] = record ~= false
    alive[owner] = record ~= false and unpack_('<d', record) > now
  end
end
local function is_alive(owner)
  look(owner)
  return alive[owner]
end

-- What an entry's state amounts to: of the dead, claimed was not sent, and sending is unknown.
local function effective(state, owner)
  if state > 2 or is_alive(owner) then return state end
  return state + 4
end

-- Where an entry is counted. An owner's own counts go where they belong when it is removed.
local function field(state, owner)
  if state > 2 then return state end
  look(owner)
  if known[owner] then return state .. ':' .. owner end
  return state + 4
end
local changes = {}
local function bump(state, owner, by)
  local name = field(state, owner)
  changes[name] = (changes[name] or 0) + by
end
local function write_counts()
  for name, by in pairs(changes) do
    if by ~= 0 then call('HINCRBY', counts, name, by) end
  end
end
local function remove(owner)
  for state = 1, 2 do
    local name = state .. ':' .. owner
    local count = tonumber(call('HGET', counts, name) or 0)
    if count ~= 0 then call('HINCRBY', counts, state + 4, count) end
    call('HDEL', counts, name)
  end
  call('HDEL', owners, owner)
end

-- Values of many fields, in pieces that fit on Lua's stack.
local function values_of(keys)
  local found, size = {}, #keys
  for first = 1, size, 1000 do
    local last = math.min(first + 999, size)
    local some = call('HMGET', entries, unpack(keys, first, last))
    for place = 1, last - first + 1 do
      found[first + place - 1] = some[place]
    end
  end
  return found
end
local function in_pieces(command, key, words)
  for first = 1, #words, 2000 do
    call(command, key, unpack(words, first, math.min(first + 1999, #words)))
  end
end

-- Who waits for keys is told which were settled; nobody else costs anything.
local function tell(channel, keys)
  if call('EXISTS', waiting) == 0 then return end
  local parts = {}
  for place, key in ipairs(keys) do parts[place] = pack('<I4', #key) .. key end
  call('PUBLISH', channel, table.concat(parts))
end
"""

# ARGV: epoch ('' where none is known yet), new epoch, new secret, lease.
# Answer: status, epoch, secret, owner.
OPEN = Script(
    _COMMON
    + """
local epoch = call('HGET', meta, 'epoch')
if not epoch then
  if ARGV[1] ~= '' then return {2} end
  if call('EXISTS', meta, entries, order) > 0 then return {5} end
  epoch = ARGV[2]
  call('HSET', meta, 'epoch', epoch, 'secret', ARGV[3], 'schema', 1)
elseif ARGV[1] ~= '' and ARGV[1] ~= epoch then
  return {2}
end
if tonumber(call('HGET', meta, 'schema')) > 1 then return {4} end
local all = call('HKEYS', owners)
for _, owner in ipairs(all) do
  if not is_alive(owner) then remove(owner) end
end
local owner = call('HINCRBY', meta, 'owners', 1)
call('HSET', owners, owner, pack('<dd', now + tonumber(ARGV[4]), 0))
return {0, epoch, call('HGET', meta, 'secret'), owner}
"""
)

# ARGV: epoch, owner, channel. Its entries are those of a dead owner from now on.
CLOSE = Script(
    _COMMON
    + """
if call('HGET', meta, 'epoch') ~= ARGV[1] then return {2} end
if call('HEXISTS', owners, ARGV[2]) == 1 then
  remove(ARGV[2])
  tell(ARGV[3], {})
end
return {0}
"""
)

# One group of jobs. ARGV: epoch, owner, request, last request known to be done, lease, channel,
# counts of settlings, sendings and claims and of campaigns' names, the first claim's serial; then
# the names; (key, fence, state, via, ending) of each settling; (count, via) of each sending and
# (key, fence) of each of its claims; (key, name's number, rest) of each claim.
# Answer: status, numbers of settlings that failed, of sendings that failed, and for each claim
# that is not ours: its number, state, 1 where it is this owner's, entry.
APPLY = Script(
    _COMMON
    + """
local owner, request, channel = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[6]
local settlings, sendings, claims = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local named, serial = tonumber(ARGV[10]), tonumber(ARGV[11])
if call('HGET', meta, 'epoch') ~= ARGV[1] then return {2} end
if tonumber(call('HGET', meta, 'owners')) < owner then return {3} end
local record = call('HGET', owners, owner)
if not record then return {1} end
local lease, last = unpack_('<dd', record)
if last < tonumber(ARGV[4]) then return {3} end
if lease <= now then return {1} end
known[owner], alive[owner] = true, true
local again = last >= request  -- done before; its answer was lost

-- Everything is read first, and written last.
local keys, at = {}, 12 + named
for _ = 1, settlings do
  keys[#keys + 1], at = ARGV[at], at + 5
end
for _ = 1, sendings do
  local count = tonumber(ARGV[at])
  at = at + 2
  for _ = 1, count do
    keys[#keys + 1], at = ARGV[at], at + 2
  end
end
for _ = 1, claims do
  keys[#keys + 1], at = ARGV[at], at + 3
end
local entry, dirty, new, settled = {}, {}, {}, {}
for place, value in ipairs(values_of(keys)) do entry[keys[place]] = value end
local function put(key, value)
  entry[key], dirty[key] = value, true
end

local failed_settlings, failed_sendings, others = {}, {}, {}
if again then
  failed_settlings, failed_sendings = cmsgpack.unpack(sub(record, 17))
end
at = 12 + named
for number = 1, settlings do
  local key, fence, state, via, ending = unpack(ARGV, at, at + 4)
  at, state, via = at + 5, tonumber(state), tonumber(via)
  local value = not again and entry[key]
  if value and sub(value, 2, 11) == fence then
    local was, who, which, _, sent, batch, used, campaign, length = unpack_(HEAD, value)
    if was < 3 or was == 6 then
      bump(was, who, -1)
      bump(state, 0, 1)
      put(key, pack(HEAD, state, who, which, now, sent, batch, via > 0 and via or used, campaign,
        #ending) .. ending .. sub(value, SIZE + 1 + length))
      settled[#settled + 1] = key
    -- The same, by a request whose answer was lost.
    elseif was ~= state or sub(value, SIZE + 1, SIZE + 9) ~= sub(ending, 1, 9) then
      failed_settlings[#failed_settlings + 1] = number
    end
  elseif not again then
    failed_settlings[#failed_settlings + 1] = number
  end
end

local mine, next_batch = pack('<I4', owner), {}
for number = 1, sendings do
  local count, via = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  at = at + 2
  local ours = not again
  for row = at, at + 2 * count - 2, 2 do
    local value, fence = entry[ARGV[row]], ARGV[row + 1]
    if not value or sub(value, 2, 11) ~= fence or byte(value) > 2 or sub(fence, 1, 4) ~= mine then
      ours = false
      break
    end
  end
  if ours then
    local upload = {}
    for row = at, at + 2 * count - 2, 2 do
      local key = ARGV[row]
      local value = entry[key]
      local was, who, which, _, _, _, _, campaign, length = unpack_(HEAD, value)
      if campaign > 0 and not upload[campaign] then
        local before = next_batch[campaign] or tonumber(call('HGET', batches, campaign) or 0)
        upload[campaign], next_batch[campaign] = before + 1, before + 1
      end
      bump(was, who, -1)
      bump(2, who, 1)
      put(key, pack(HEAD, 2, who, which, now, now, upload[campaign] or 0, via, campaign, length)
        .. sub(value, SIZE + 1))
    end
  elseif not again then
    failed_sendings[#failed_sendings + 1] = number
  end
  at = at + 2 * count
end

local name_numbers = {[0] = 0}
local function campaign_of(place)
  if not name_numbers[place] then
    local name = ARGV[11 + place]
    local found = call('HGET', campaigns, name)
    if not found then
      found = call('RPUSH', names, name)
      call('HSET', campaigns, name, found)
    end
    name_numbers[place] = tonumber(found)
  end
  return name_numbers[place]
end
local elsewhere = false
for number = 1, claims do
  local key, name, rest = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  at = at + 3
  local value, state, who, which = entry[key], 0, 0, 0
  if value then
    state, who, which = unpack_('<BI4I6', value)
    state = effective(state, who)
  end
  if again then
    if who ~= owner or which ~= serial or state ~= 1 then
      -- What became free meanwhile is claimed by the next look.
      if state == 0 or state == 4 or state == 5 then state = 2 end
      others[#others + 1] = {number, state, who == owner and 1 or 0, value}
    end
  elseif state == 0 or state == 4 or state == 5 then
    if state == 0 then new[#new + 1] = key else bump(byte(value), who, -1) end
    bump(1, owner, 1)
    put(key, pack(HEAD, 1, owner, serial, now, 0, 0, 0, campaign_of(name), 0) .. rest)
  else
    others[#others + 1] = {number, state, who == owner and 1 or 0, value}
    elsewhere = elsewhere or (state < 3 and who ~= owner)
  end
  serial = serial + 1
end
if elsewhere then call('SET', waiting, '', 'PX', 5000) end

if not again then
  local answer = ''
  if #failed_settlings + #failed_sendings > 0 then
    answer = cmsgpack.pack(failed_settlings, failed_sendings)
  else
    answer = '\\144\\144'
  end
  call('HSET', owners, owner, pack('<dd', now + tonumber(ARGV[5]), request) .. answer)
  local words = {}
  for key in pairs(dirty) do
    words[#words + 1] = key
    words[#words + 1] = entry[key]
  end
  in_pieces('HSET', entries, words)
  in_pieces('RPUSH', order, new)
  for campaign, batch in pairs(next_batch) do call('HSET', batches, campaign, batch) end
  write_counts()
  if #settled > 0 then tell(channel, settled) end
end
return {0, failed_settlings, failed_sendings, others}
"""
)

# ARGV: epoch ('' for any), first place, how many, effective state wanted ('' for all, 'flight'),
# campaign ('' for all). Answer: status, how many were looked at, then (key, state, entry) of each.
PAGE = Script(
    _COMMON
    + """
local epoch = call('HGET', meta, 'epoch')
if ARGV[1] ~= '' and epoch ~= ARGV[1] then return {2} end
local first, count, wanted = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local number
if ARGV[5] ~= '' then
  number = tonumber(call('HGET', campaigns, ARGV[5]) or -1)
  if number < 0 then return {0, 0, {}} end
end
local keys = call('LRANGE', order, first, first + count - 1)
local found = {}
for place, value in ipairs(values_of(keys)) do
  local state, owner, _, _, _, _, _, campaign = unpack_(HEAD, value)
  state = effective(state, owner)
  if (wanted == '' or tonumber(wanted) == state or (wanted == 'flight' and state < 3))
      and (not number or number == campaign) then
    found[#found + 1] = keys[place]
    found[#found + 1] = state
    found[#found + 1] = value
  end
end
return {0, #keys, found}
"""
)

# ARGV: epoch ('' for any). Answer: status, then counts of the states from 3 to 6, and in flight.
SUMMARY = Script(
    _COMMON
    + """
if ARGV[1] ~= '' and call('HGET', meta, 'epoch') ~= ARGV[1] then return {2} end
local found, flight = {0, 0, 0, 0, 0, 0}, 0
local all = call('HGETALL', counts)
for place = 1, #all, 2 do
  local state, owner = string.match(all[place], '^(%d):?(%d*)$')
  state = tonumber(state)
  if owner ~= '' then state = effective(state, owner) end
  if state < 3 then
    flight = flight + tonumber(all[place + 1])
  else
    found[state] = found[state] + tonumber(all[place + 1])
  end
end
return {0, found[3], found[4], found[5], found[6], flight}
"""
)

# ARGV: epoch, key, new state, ending, channel. Answer: status, effective state before (0: no such
# key), the entry then.
RESOLVE = Script(
    _COMMON
    + """
if call('HGET', meta, 'epoch') ~= ARGV[1] then return {2} end
local key, ending = ARGV[2], ARGV[4]
local value = call('HGET', entries, key)
if not value then return {0, 0, ''} end
local was, owner, serial, _, sent, batch, via, campaign, length = unpack_(HEAD, value)
local state = effective(was, owner)
if state == 6 then
  bump(was, owner, -1)
  bump(tonumber(ARGV[3]), 0, 1)
  call('HSET', entries, key, pack(HEAD, tonumber(ARGV[3]), owner, serial, now, sent, batch, via,
    campaign, #ending) .. ending .. sub(value, SIZE + 1 + length))
  write_counts()
  tell(ARGV[5], {key})
end
return {0, state, value}
"""
)

# ARGV: epoch, first place, how many, campaign, batch, new state, ending, stamp of this sweep (''
# for a new one), channel. Answer: status, how many were looked at, how many resolved, the stamp.
# Those that have the stamp were resolved by this very sweep, whose answer was lost.
SWEEP = Script(
    _COMMON
    + """
if call('HGET', meta, 'epoch') ~= ARGV[1] then return {2} end
local number = tonumber(call('HGET', campaigns, ARGV[4]) or -1)
local first, count, wanted = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local after, ending = tonumber(ARGV[6]), ARGV[7]
local stamp = ARGV[8] == '' and pack('<d', now) or ARGV[8]
local when = unpack_('<d', stamp)
if number < 0 then return {0, 0, 0, stamp} end
local keys, words, done = call('LRANGE', order, first, first + count - 1), {}, 0
for place, value in ipairs(values_of(keys)) do
  local was, owner, serial, updated, sent, batch, via, campaign, length = unpack_(HEAD, value)
  if campaign == number and batch == wanted then
    if effective(was, owner) == 6 then
      bump(was, owner, -1)
      bump(after, 0, 1)
      words[#words + 1] = keys[place]
      words[#words + 1] = pack(HEAD, after, owner, serial, when, sent, batch, via, campaign,
        #ending) .. ending .. sub(value, SIZE + 1 + length)
      done = done + 1
    elseif was == after and updated == when then
      done = done + 1
    end
  end
end
in_pieces('HSET', entries, words)
write_counts()
if done > 0 then tell(ARGV[9], {}) end
return {0, #keys, done, stamp}
"""
)
