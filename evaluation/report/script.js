// Without a script every video keeps its controls; with it they show where they are wanted.
for (const video of document.querySelectorAll("video")) {
  video.controls = false;
  for (const event of ["pointerenter", "focus"])
    video.addEventListener(event, () => { video.controls = true; });
  for (const event of ["pointerleave", "blur"])
    video.addEventListener(event, () => { video.controls = false; });
  video.tabIndex = 0;
}
for (const button of document.querySelectorAll("button[data-sound]")) {
  button.addEventListener("click", () => {
    for (const video of document.querySelectorAll("video")) video.pause();
    for (const video of button.closest(".clip").querySelectorAll("video")) {
      video.currentTime = 0;
      video.muted = video.dataset.side !== button.dataset.sound;
      video.play();
    }
  });
}
