"""How processes that work on one large image or batch after another shall keep their memory."""

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment that lets glibc keep the memory of one image or batch for the next: by default it goes back to the system
and comes again page by page. And asks for that memory in huge pages. All threads share the main thread's arena: in any
other one glibc keeps nothing larger than 64 MiB, and Ray Train's loop runs on a thread of its own, where that took a
tenth of an update's time at 256 px."""
