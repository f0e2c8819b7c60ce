"""`Ring.turn` once more, in Lua: what a Redis server does with a process' turn.

One key holds the whole state, so that the server can lose all of it (a restart without its data, an
eviction) but never a part. Where there is none, nothing is known of the time before, and nobody
goes for one window. Every part of a turn carries tokens or says what is to hold from now on, so a
turn that is run twice does what it does once.
"""

from __future__ import annotations

from fuse_async._ring import (
    FORGOTTEN,
    GRACE,
    MOST_TICKETS,
    MOST_TIMES,
    RECOVERY,
    SLOWEST,
    Answer,
    Ask,
)

__all__ = ["SCRIPT", "OtherLimit", "answer_of", "argument"]

_CONSTANTS = f"""
local GRACE, FORGOTTEN = {GRACE}, {FORGOTTEN}
local MOST_TICKETS, MOST_TIMES = {MOST_TICKETS}, {MOST_TIMES}
local SLOWEST, RECOVERY = {SLOWEST}, {RECOVERY}
"""

SCRIPT = (
    _CONSTANTS
    + """
local said, at = {}, 0
for word in string.gmatch(ARGV[1], '%S+') do table.insert(said, word) end
local function word() at = at + 1; return said[at] end
local function number() return tonumber(word()) end
local function words()
  local found = {}
  for i = 1, number() do found[i] = word() end
  return found
end

local now = word()
if now == 'now' then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  now = tonumber(now)
end
local limit, per, life, gap = number(), number(), number(), number()
local owner, queue, pause = word(), word() == '1', number()
local trouble, good = word() == '1', number()
local asked, ended, margins, returned, held = words(), words(), words(), words(), words()

local cold, ring = 'warm', redis.call('GET', KEYS[1])
if ring then
  ring = cmsgpack.unpack(ring)
  if ring.limit ~= limit or ring.per ~= per then
    return string.format('other %.0f %.0f', ring.limit, ring.per)
  end
else
  cold = 'cold'
  ring = {limit = limit, per = per, untils = {}, tokens = {}, line = {}, paused = 0, slowness = 1,
          slower = 0, last = now}
  for i = 1, limit do ring.untils[i] = now + per; ring.tokens[i] = '' end
end
-- A server's clock is set back now and then: nobody may wait for the time that comes twice.
if now < ring.last then
  local back = ring.last - now
  for i = 1, limit do ring.untils[i] = ring.untils[i] - back end
  for _, one in ipairs(ring.line) do one[3] = one[3] - back end
  ring.paused, ring.slower = ring.paused - back, ring.slower - back
end
ring.last = now
local untils, tokens = ring.untils, ring.tokens
local place_of = {}
for i = 1, limit do if tokens[i] ~= '' then place_of[tokens[i]] = i end end

local function set(i, token, free_at)
  if tokens[i] ~= '' then place_of[tokens[i]] = nil end
  untils[i], tokens[i] = free_at, token
  if token ~= '' then place_of[token] = i end
end
local function slowed() return math.floor(per * ring.slowness + 0.5) end
local function cool(token, as, free_at)
  local i = place_of[token]
  if not i then
    for j = 1, limit do
      if tokens[j] == '' and (not i or untils[j] < untils[i]) then i = j end
    end
    if not i then return end
    free_at = math.max(free_at, untils[i])
  end
  set(i, as, free_at)
end

if pause > 0 then ring.paused = math.max(ring.paused, now + pause) end
for _ = 1, good do
  if ring.slowness > 1 then
    ring.slowness = ring.slowness * RECOVERY
    if ring.slowness <= 1.05 then ring.slowness = 1 end
  end
end
if trouble and now >= ring.slower and ring.slowness < SLOWEST then
  ring.slowness = math.min(SLOWEST, ring.slowness * 2)
  ring.slower = now + slowed()
end
for i, token in ipairs(ended) do cool(token, '', now + slowed() + tonumber(margins[i])) end
for _, token in ipairs(returned) do if place_of[token] then cool(token, '', now) end end
for _, token in ipairs(held) do
  if not place_of[token] then cool(token, token, now + life + per) end
end

local granted, wanted = {}, {}
for _, token in ipairs(asked) do
  table.insert(place_of[token] and granted or wanted, token)
end

-- The line: who is there, who is due, and how the free slots are dealt.
local line, ticket = {}, nil
for _, one in ipairs(ring.line) do
  if one[3] + FORGOTTEN >= now then
    table.insert(line, one)
    if one[1] == owner then ticket = one end
  end
end
local wants, served, here, least, before, free = {}, {}, nil, nil, 0, 0
for _, one in ipairs(line) do
  if one == ticket then
    table.insert(wants, #wanted)
    table.insert(served, one[4])
    here = #wants
  elseif one[2] > 0 and now <= one[3] + GRACE then
    table.insert(wants, one[3] <= now and one[2] or 0)
    table.insert(served, one[4])
    if not least or one[4] < least then least = one[4] end
  end
end
if not here then
  table.insert(wants, #wanted)
  table.insert(served, least or 0)
  here = #wants
end
if now >= ring.paused then
  for i = 1, limit do if untils[i] <= now then free = free + 1 end end
end
local left_over, mine = 0, served[here]
for i = 1, #wants do left_over, before = left_over + wants[i], before + served[i] end
for _ = 1, math.min(free, left_over) do
  local place
  for i = 1, #wants do
    if wants[i] > 0 and (not place or served[i] < served[place]) then place = i end
  end
  wants[place], served[place] = wants[place] - 1, served[place] + 1
end
local got, index = served[here] - mine, 0
for i = 1, #served do
  index = index + served[i]
  if i ~= here and (served[i] < served[here] or (served[i] == served[here] and i < here)) then
    index = index + 1
  end
end
index = index - before - got
if #wanted == 0 then index = 0 end
local slot = 1
for i = 1, got do
  while untils[slot] > now do slot = slot + 1 end
  set(slot, wanted[i], now + life + per)
  table.insert(granted, wanted[i])
end
local left = #wanted - got

local times, soonest = {}, math.max(now, ring.paused)
for i = 1, limit do
  local free_at = untils[i]
  if tokens[i] ~= '' then free_at = math.min(free_at, now + per) end
  times[i] = math.max(soonest, free_at)
end
table.sort(times)
local next_at = now + gap
if left > 0 then
  next_at = math.min(next_at, times[index % limit + 1] + math.floor(index / limit) * per)
end

if ticket and (got > 0 or not queue) then
  for i, one in ipairs(line) do if one == ticket then table.remove(line, i) break end end
end
if queue and (left > 0 or (got == 0 and ticket)) then
  if ticket then
    if got > 0 then table.insert(line, ticket) end
  elseif #line < MOST_TICKETS then
    least = nil
    for _, one in ipairs(line) do
      if one[2] > 0 and (not least or one[4] < least) then least = one[4] end
    end
    ticket = {owner, 0, 0, least or 0}
    table.insert(line, ticket)
  end
  if ticket then ticket[2], ticket[3], ticket[4] = left, next_at, ticket[4] + got end
end
ring.line = line

redis.call('SET', KEYS[1], cmsgpack.pack(ring), 'PX',
           string.format('%.0f', (life + 16 * per) / 1000 + 3600000))
local answer = {string.format('%s %.0f %.17g', cold, next_at - now, ring.slowness), #granted}
for _, token in ipairs(granted) do table.insert(answer, token) end
for i = 1, math.min(limit, MOST_TIMES) do
  table.insert(answer, string.format('%.0f', times[i] - now))
end
return table.concat(answer, ' ')
"""
)


class OtherLimit(Exception):
    """The state under this name is for another limit."""

    def __init__(self, limit: int, per: int) -> None:
        super().__init__(limit, per)
        self.limit = limit
        self.per = per


def argument(ask: Ask, limit: int, per: int, now: int | None) -> str:
    """What the script is called with; `now` is None for the server's clock.

    One text each way: redis-py takes as long for a word of its own as the server for all of them.
    """
    lists = (
        ask.tokens,
        [token for token, _ in ask.ended],
        [margin for _, margin in ask.ended],
        ask.returned,
        ask.held,
    )
    words: list[int | str] = [
        "now" if now is None else now,
        limit,
        per,
        ask.life,
        ask.gap,
        ask.owner,
        int(ask.queue),
        ask.pause,
        int(ask.trouble),
        ask.good,
    ]
    for found in lists:
        words.append(len(found))
        words += found
    return " ".join(map(str, words))


def answer_of(reply: bytes | str) -> Answer:
    """Read the script's answer. Raises `OtherLimit`."""
    kind, *words = (reply if isinstance(reply, str) else reply.decode()).split()
    if kind == "other":
        raise OtherLimit(int(words[0]), int(words[1]))
    next_in, slowness, granted = int(words[0]), float(words[1]), int(words[2])
    numbers = [int(word) for word in words[3:]]
    return Answer(numbers[:granted], next_in, numbers[granted:], slowness, kind == "cold")
