-- Takes tokens from a bucket, all or none, by the server's clock.
-- KEYS[1]: the bucket. ARGV: tokens a second, tokens in a full bucket, tokens to take.
-- Answers 0, or how many milliseconds to wait.
local per_second, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at_us')
local tokens = tonumber(kept[1] or nil) or burst
local at_us = tonumber(kept[2] or nil) or now_us
tokens = math.min(burst, tokens + math.max(0, now_us - at_us) / 1000000 * per_second)
local wait_ms = 0
if tokens >= cost then
  tokens = tokens - cost
else
  -- An answer is a whole number of at most 53 bits.
  wait_ms = math.min(1e12, math.max(1, math.ceil((cost - tokens) / per_second * 1000)))
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'at_us', string.format('%.0f', now_us))
-- A full bucket is as good as none. A day bounds what the slowest rates keep.
local full_ms = math.min(86400000, math.ceil((burst - tokens) / per_second * 1000) + 1000)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', full_ms))
return wait_ms
