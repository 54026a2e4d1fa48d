-- The full cycle, one request each of push, pull and ack; a job counts when its ack is answered.  Environment: QUEUE, DATA.
dofile((os.getenv("LUA_DIR") or ".") .. "/common.lua")
local path = "/queues/" .. os.getenv("QUEUE") .. "/jobs"
local active, head, tail, backlog = {}, 1, 0, 0
local push, pull
function init()
  push = wrk.format("POST", path, nil, '{"data":' .. os.getenv("DATA") .. '}')
  pull = wrk.format("GET", path)
end
function request()
  if tail >= head then
    local id = active[head]
    active[head], head = nil, head + 1
    return wrk.format("POST", "/jobs/" .. id .. "/ack", nil, '{"result":{"sent":true}}')
  end
  if backlog > 0 then
    backlog = backlog - 1
    return pull
  end
  return push
end
function useful(body)
  if body:find('"job":', 1, true) then
    local id = body:match('"job":{"id":"([^"]+)"')
    if id then tail = tail + 1 active[tail] = id end
    return 0
  end
  if body:find('"id":', 1, true) then
    backlog = backlog + 1
    return 0
  end
  return 1
end
